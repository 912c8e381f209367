"""All that only a GPU can show, in one command: the kernels' tests and times, and `vtc bench` at real shapes.

    python3 -m vtc.bench.gpu --output results/gpu

runs from a checkout, without an installation, where torch, triton and transformers are (pytest and hypothesis for the
tests; without these they are left out, and the table says so). Every step has a limit, so that all of it takes less
than ten minutes; what was measured is written as it comes, and the table at the end has a line for each step.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vtc.bench import kernels
from vtc.bench.results import environment
from vtc.io.files import write_json
from vtc.io.terminal import say

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ("tests/test_gpu.py", "tests/test_triton_*.py")
BENCHES = (
    ("llava-next-7b", ("--visual-tokens", "2880", "--batch-sizes", "1,8")),
    ("qwen2.5-vl-7b", ("--visual-tokens", "2048,8192", "--batch-sizes", "1")),
    ("llava-1.5-7b", ("--visual-tokens", "576", "--batch-sizes", "1,8")),
)


@dataclass
class CheckStep:
    """One line of the table. verdict: passed, failed, left out, or out of time."""

    name: str
    verdict: str
    seconds: float
    said: str = ""


def run_step(name: str, command: list[str], log: Path, limit: float, **variables: str) -> CheckStep:
    """Runs a command in the checkout with its output in a log; stopped at the limit (seconds)."""
    start = time.monotonic()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **variables}
    say(f"== {name}: {' '.join(command)}")
    with log.open("w", encoding="utf-8") as out:
        try:
            done = subprocess.run(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, timeout=limit)
            verdict = "passed" if done.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            verdict = "out of time"
    text = log.read_text(encoding="utf-8", errors="replace")
    say(text[-6000:])
    lines = [line for line in text.splitlines() if line.strip()]
    return CheckStep(name, verdict, time.monotonic() - start, lines[-1].strip()[:80] if lines else "")


def tests(folder: Path, limit: float) -> CheckStep:
    """The Triton tests on the GPU instead of the interpreter, with the first configuration of each kernel."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return CheckStep("tests", "left out", 0.0, f"{', '.join(missing)} not installed")
    files = sorted({str(file.relative_to(ROOT)) for pattern in TESTS for file in ROOT.glob(pattern)})
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider", *files]
    if importlib.util.find_spec("xdist") is not None:  # most of the time goes into compiling, on the host's cores
        command += ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))]
    return run_step("tests", command, folder / "tests.log", limit, VTC_AUTOTUNE="0")


def kernel_rows(folder: Path, device: torch.device, small: bool, limit: float) -> CheckStep:
    """Each kernel against its reference; kernels.json."""
    start, rows = time.monotonic(), []
    dtype = torch.float32 if small else torch.bfloat16
    verdict = "passed"
    say(f"== kernels on {device}, {dtype}\n{HEAD}")
    for case in kernels.cases(small):
        if time.monotonic() - start > limit:
            verdict = "out of time"
            break
        try:
            row = kernels.measure(case, device, dtype, 1 if small else 20)
        except Exception as error:  # one broken kernel must not hide the others
            rows.append({"kernel": case.kernel, "shape": case.shape, "failed": " ".join(str(error).split())[:500]})
            say(f"{case.kernel:14} {case.shape:42} FAILED {rows[-1]['failed'][:120]}")
            verdict = "failed"
            continue
        rows.append(row.to_dict())
        say(line_of(row))
        verdict = verdict if row.passed else "failed"
        record = {"schema": "vtc.bench.kernels/1", "environment": environment(device), "rows": rows}
        write_json(folder / "kernels.json", record, indent=1)
    good = sum(bool(row.get("passed")) for row in rows)
    return CheckStep("kernels", verdict, time.monotonic() - start, f"{good} of {len(rows)} within their tolerance")


HEADS = (
    ("kernel", 14), ("shape", 42), ("error", -9), ("equal", -6), ("triton ms", -10), ("torch ms", -10), ("faster", -8),
    ("MB", -7),
)  # fmt: skip
HEAD = " ".join(f"{name:{'<' if width > 0 else '>'}{abs(width)}}" for name, width in HEADS)


def line_of(row: kernels.KernelRow) -> str:
    """A row as text."""
    ms = 1000 * row.triton_seconds, 1000 * row.reference_seconds
    mark = "" if row.passed else "  BEYOND ITS TOLERANCE"
    return (
        f"{row.kernel:14} {row.shape:42} {row.error:9.1e} {'yes' if row.equal else '':>6} {ms[0]:10.3f} {ms[1]:10.3f} "
        f"{ms[1] / ms[0]:7.1f}x {row.triton_bytes / 1e6:7.1f}{mark}"
    )


def benches(folder: Path, small: bool, limit: float) -> list[CheckStep]:
    """`vtc bench` for each preset, within a common limit."""
    steps, start = [], time.monotonic()
    chosen = (("tiny", ("--visual-tokens", "64", "--rounds", "1", "--new-tokens", "2")),) if small else BENCHES
    for preset, options in chosen:
        left = limit - (time.monotonic() - start)
        name, output = f"bench {preset}", folder / preset
        if left < 20:
            steps.append(CheckStep(name, "left out", 0.0, "no time left"))
            continue
        command = [sys.executable, "-m", "vtc", "bench", "--preset", preset, *options, "--output", str(output)]
        steps.append(run_step(name, command, folder / f"bench-{preset}.log", left))
    return steps


def main(arguments: list[str] | None = None) -> int:
    """Runs everything and prints the table; 0 if all steps passed."""
    parser = argparse.ArgumentParser(description="Check and time vtc's kernels on a GPU.")
    parser.add_argument("--output", type=Path, default=Path("results/gpu"), help="for results and logs")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--trial", action="store_true", help="small shapes in the interpreter on a CPU")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not given.trial:
        say("vtc: error: there is no CUDA device here; possible: --trial, small shapes on the CPU", error=True)
        return 2
    folder, device = given.output.resolve(), torch.device("cpu" if given.trial else "cuda")
    folder.mkdir(parents=True, exist_ok=True)
    say(json.dumps(environment(device)))
    steps = [] if given.trial else [tests(folder, 0.45 * given.limit)]
    left = given.limit - sum(step.seconds for step in steps)
    steps.append(kernel_rows(folder, device, given.trial, 0.4 * left))
    steps += benches(folder, given.trial, given.limit - sum(step.seconds for step in steps))
    say(f"\n{'step':22} {'verdict':12} {'seconds':>8}  last line")
    for step in steps:
        say(f"{step.name:22} {step.verdict:12} {step.seconds:8.0f}  {step.said}")
    say(f"results  {folder}")
    return int(any(step.verdict != "passed" for step in steps))


if __name__ == "__main__":
    sys.exit(main())
