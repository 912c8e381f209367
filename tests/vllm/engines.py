"""vLLM engines in processes of their own, seen from the tests, and the comparison with the Hugging Face path."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.vllm.reference import Ask, Written

ROOT = Path(__file__).resolve().parents[2]
WAIT = 600  # seconds that one engine may take
ENGINE = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 16, "seed": 0,
    "block_size": 32, "limit_mm_per_prompt": {"image": 4}, "disable_log_stats": True,
}  # fmt: skip
TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
_numbers = itertools.count()


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The variables that an engine's process gets; `folder` is for vLLM's own files."""
    fixed = {
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_CACHE_ROOT": str(folder / "vllm"), "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }  # fmt: skip
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**inherited, **fixed, **more}


@dataclass
class Engine:
    """A started engine that works while the test computes something else; `result` waits for it."""

    process: subprocess.Popen
    files: Path
    found: dict | None = field(default=None)

    def result(self) -> dict:
        """What `tests.vllm.drive` wrote. Fails with the end of the log when the process died."""
        if self.found is None:
            try:
                self.process.wait(timeout=WAIT)
            finally:
                self.process.kill()
            log, written = self.files / "log", self.files / "result.json"
            assert written.is_file(), f"the engine died, code {self.process.returncode}:\n{log.read_text()[-6000:]}"
            self.found = json.loads(written.read_text())
        return self.found

    def answers(self) -> list[list[dict]]:
        """The answers of each round; fails when the engine or a round was refused."""
        result = self.result()
        assert result["start_error"] is None, f"no start: {result['start_error']}"
        errors = [r["error"] for r in result["rounds"]]
        assert not any(errors), errors
        return [r["answers"] for r in result["rounds"]]

    @property
    def log(self) -> str:
        """Everything that the process has written."""
        return (self.files / "log").read_text(errors="replace")


@dataclass(frozen=True)
class Engines:
    """Starts engines whose files go below `folder`."""

    folder: Path

    def start(
        self, model: Path, rounds: list[list[dict]], overrides: dict | None = None,
        env: dict | None = None, controls: str = "", starts: list[dict] | None = None, **engine,
    ) -> Engine:  # fmt: skip
        """Starts an engine on `model`; with `starts`, changes to its arguments, it only tries to start each.

        overrides: its hf_overrides. controls: faults, see `tests.vllm.controls`. engine: further arguments of vllm.LLM.
        """
        files = self.folder / f"engine{next(_numbers)}"
        files.mkdir(parents=True)
        arguments = {**ENGINE, "model": str(model), **engine}
        if overrides:
            arguments["hf_overrides"] = overrides
        work = {"rounds": rounds} if starts is None else {"starts": starts}
        (files / "spec.json").write_text(json.dumps({"engine": arguments, **work}))
        command = [sys.executable, "-m", "tests.vllm.drive", str(files / "spec.json"), str(files / "result.json")]
        with (files / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                env=environment(self.folder, VTC_TEST_CONTROLS=controls, **(env or {})),
            )  # fmt: skip
        return Engine(process, files)


def request(ask: Ask, keep: float | int | None = None, **more) -> dict:
    """An Ask as a request for the engine; keep: what this request asks for, None for the server's own."""
    found = {"prompt": ask.prompt, "images": [str(p) for p in ask.images], "tokens": ask.tokens}
    if keep is not None and ask.images:
        found["kwargs"] = {"vtc_keep": keep}
    return {**found, "ignore_eos": ask.ignore_eos, **more}


def differences(asks: list[Ask], written: list[Written], answers: list[dict]) -> list[str]:
    """Where the engine's ids or prompt lengths are not those of the reference; empty when all are equal."""
    assert len(asks) == len(written) == len(answers)
    wrong = []
    for number, (ask, hf, vllm) in enumerate(zip(asks, written, answers, strict=True)):
        if (vllm["prompt_tokens"], vllm["ids"]) != (hf.prompt_tokens, hf.ids):
            wrong.append(
                f"{number} {ask.prompt[-40:]!r}, {len(ask.images)} images: vLLM {vllm['prompt_tokens']} {vllm['ids']}, "
                f"HF {hf.prompt_tokens} {hf.ids}"
            )
    return wrong


def overrides(model: Path, strategy: str, keep: float | int, max_keep: float | int | None = None, **knobs) -> dict:
    """`hf_overrides` of a model's folder, see `vtc.vllm.settings.overrides`."""
    from transformers import AutoConfig

    from vtc.vllm.settings import overrides

    config = AutoConfig.from_pretrained(model, local_files_only=True)
    return overrides(config, strategy, keep, max_keep, **knobs)
