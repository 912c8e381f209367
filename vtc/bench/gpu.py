"""Everything that needs a GPU, in one command: the kernels' tests and times, and `vtc bench` at real shapes.

    python3 -m vtc.bench.gpu --output results/gpu

runs from a checkout, without an installation, where torch, triton and transformers are (pytest and hypothesis for the
tests; without these they are left out, and the table says so). Every step has a time limit, so that the whole takes
less than ten minutes; results are written as they come, and the table at the end has a line for each step.
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
from vtc.bench.kernel_rows import KERNELS, code_digest, head, line_of
from vtc.bench.results import Results, environment
from vtc.core.errors import ConfigError
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
    """One line of the table. verdict: passed, failed, left out, or out of time; last_line: of the step's output."""

    name: str
    verdict: str
    seconds: float
    last_line: str = ""


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


def kernel_results(folder: Path, device: torch.device, small: bool, overwrite: bool) -> Results:
    """The store of the kernels' rows, a folder below that of the whole check. Raises ConfigError when it holds rows of
    other kernels, versions or machines."""
    dtype = "float32" if small else "bfloat16"
    settings = {"device": device.type, "dtype": dtype, "repeats": 1 if small else 20, "code": code_digest()}
    return Results(KERNELS, folder / "kernels", settings, environment(device), overwrite)


def kernel_rows(results: Results, device: torch.device, small: bool, limit: float) -> CheckStep:
    """Each kernel against its reference, unless the store has it already."""
    start, measured = time.monotonic(), 0
    dtype, repeats = results.settings["dtype"], results.settings["repeats"]
    out_of_time = False
    say(f"== kernels on {device}, {dtype}\n{head()}")
    for case in kernels.cases(small):
        if results.has((case.kernel, case.shape)):
            continue
        if out_of_time := time.monotonic() - start > limit:
            break
        try:
            row = kernels.measure(case, device, getattr(torch, dtype), repeats).to_dict()
        except Exception as error:  # one broken kernel must not hide the others
            row = {"kernel": case.kernel, "shape": case.shape, "failed": " ".join(str(error).split())[:500]}
        results.add(row)
        measured += 1
        say(line_of(row))
    passed = sum(bool(row.get("passed")) for row in results.rows)
    verdict = "failed" if passed < len(results.rows) else "out of time" if out_of_time else "passed"
    earlier = f", {len(results.rows) - measured} of an earlier run" if measured < len(results.rows) else ""
    last = f"{passed} of {len(results.rows)} within their tolerance{earlier}"
    return CheckStep("kernels", verdict, time.monotonic() - start, last)


def benches(folder: Path, small: bool, limit: float, overwrite: bool = False) -> list[CheckStep]:
    """`vtc bench` for each preset, within a common limit."""
    steps, start = [], time.monotonic()
    again = ["--overwrite"] if overwrite else []
    chosen = (("tiny", ("--visual-tokens", "64", "--rounds", "1", "--new-tokens", "2")),) if small else BENCHES
    for preset, options in chosen:
        remaining = limit - (time.monotonic() - start)
        name, output = f"bench {preset}", folder / preset
        if remaining < 20:
            steps.append(CheckStep(name, "left out", 0.0, "no time left"))
            continue
        bench = [sys.executable, "-m", "vtc", "bench", "--preset", preset]
        command = [*bench, *options, "--output", str(output), *again]
        steps.append(run_step(name, command, folder / f"bench-{preset}.log", remaining))
    return steps


def main(arguments: list[str] | None = None) -> int:
    """Runs everything and prints the table; 0 if all steps passed."""
    parser = argparse.ArgumentParser(description="Check and time vtc's kernels on a GPU.")
    parser.add_argument("--output", type=Path, default=Path("results/gpu"), help="for results and logs")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all of it")
    parser.add_argument("--overwrite", action="store_true", help="measure everything anew")
    parser.add_argument("--trial", action="store_true", help="small shapes in the interpreter on a CPU")
    options = parser.parse_args(arguments)
    trial, overwrite = options.trial, options.overwrite
    folder, device = options.output.resolve(), torch.device("cpu" if trial else "cuda")
    try:
        if not torch.cuda.is_available() and not trial:
            raise ConfigError("there is no CUDA device here; possible: --trial, small shapes on the CPU")
        results = kernel_results(folder, device, trial, overwrite)
    except ConfigError as error:
        say(f"vtc: error: {error}", error=True)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    say(json.dumps(environment(device)))
    steps = [] if trial else [tests(folder, 0.45 * options.limit)]
    remaining = options.limit - sum(step.seconds for step in steps)
    steps.append(kernel_rows(results, device, trial, 0.4 * remaining))
    steps += benches(folder, trial, options.limit - sum(step.seconds for step in steps), overwrite)
    say(f"\n{'step':22} {'verdict':12} {'seconds':>8}  last line")
    for step in steps:
        say(f"{step.name:22} {step.verdict:12} {step.seconds:8.0f}  {step.last_line}")
    say(f"results  {folder}")
    return int(any(step.verdict != "passed" for step in steps))


if __name__ == "__main__":
    sys.exit(main())
