"""Serving measured: KV blocks and requests per second of vLLM with and without pruning, at several concurrencies.

A model with random weights is written to a temporary folder and served by one engine for each system: the stock class,
and the plugin with each strategy. All of them stay up and take turns, so that ratios are taken within a round.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

from vtc.bench.results import Results
from vtc.bench.serving.ratios import SERVING, STOCK, environment
from vtc.bench.serving.vllm_engine import ENVIRONMENT, Workload, serve
from vtc.bench.serving.workload import PromptForm, ServedPreset, kv_bytes, save, served
from vtc.bench.subject import DTYPES
from vtc.core.errors import ConfigError
from vtc.io.terminal import say

WARM_UP = 10**6  # added to the number of rounds: a round that is not measured
CORES = len(os.sched_getaffinity(0))
SPARE = 8  # KV blocks beyond what the most requests at once can need


@dataclass(frozen=True)
class ServingOptions:
    """The command line. requests: at least so many in a cell; text: tokens of a prompt that are not visual; batched:
    most tokens of a step (vLLM's max_num_batched_tokens)."""

    output: Path
    strategies: tuple[str, ...] = ("hiprune", "divprune")
    keep: str = "0.25"
    concurrency: tuple[int, ...] = (1, 8, 32)
    preset: str = "llava-mini"
    requests: int = 8
    rounds: int = 3
    text: int = 64
    new_tokens: int = 16
    dtype: str = "float32"
    block_size: int = 32
    batched: int = 2048
    threads: int = CORES
    compiled: bool = False
    seed: int = 0

    def __post_init__(self):
        for name in ("requests", "rounds", "text", "new_tokens", "block_size", "batched", "threads", "seed"):
            minimum = {"text": 3, "seed": 0}.get(name, 1)
            if getattr(self, name) < minimum:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} {getattr(self, name)} is out of range; possible: {minimum} or more")
        if self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype!r} is unknown; possible: {', '.join(DTYPES)}")

    def settings(self) -> dict:
        """What every cell of a folder has in common."""
        per_run = ("output", "strategies", "concurrency", "rounds")
        return {name: value for name, value in asdict(self).items() if name not in per_run}

    def count(self, concurrency: int) -> int:
        """Requests of a cell: each place in the engine is taken at least twice."""
        return max(self.requests, 2 * concurrency)

    def job(self, form: PromptForm, concurrency: int, count: int, number: int) -> Workload:
        """A cell of round `number`; every system gets the same prompts, no two cells of a system share one."""
        return Workload(form, concurrency, count, self.text, self.new_tokens, (self.seed, number, concurrency))


def run(options: ServingOptions, command: str = "", overwrite: bool = False) -> Results:
    """Measures the cells that the output folder does not have yet. Raises ConfigError in one line before any engine is
    started, and RuntimeError when one breaks."""
    model = served(options.preset)
    if find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed; possible: pip install 'vtc-vlm[vllm]'")
    results = Results(SERVING, options.output, options.settings(), environment(), overwrite, command)
    systems = {STOCK: None, **{f"{name} {options.keep}": name for name in options.strategies}}
    overrides = {name: _overrides(model.config, strategy, options.keep) for name, strategy in systems.items()}
    resolved = {name: override.get("vtc", {}).get("strategy") for name, override in overrides.items()}
    cells = [(s, c, r) for r in range(options.rounds) for c in options.concurrency for s in _turned(systems, r)]
    todo = [cell for cell in cells if not results.has(cell, resolved[cell[0]])]
    if not todo:
        return results
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _tell(f"writing {options.preset} with random weights")
        parameters = save(model, Path(folder), DTYPES[options.dtype], options.seed)
        needed = {name: overrides[name] for name in dict.fromkeys(system for system, _, _ in todo)}
        with _engines(options, model, folder, needed) as clients:
            for done, (system, concurrency, number) in enumerate(todo, 1):
                _tell(f"{done}/{len(todo)} round {number + 1}: {system}, {concurrency} at once")
                job = options.job(model.prompt, concurrency, options.count(concurrency), number)
                figures = clients[system].answer(job)
                cell = {"system": system, "concurrency": concurrency, "round": number, "parameters": parameters}
                results.add({**cell, "resolved": resolved[system], **figures})
    return results


def _turned(systems: dict, number: int) -> list[str]:
    """The systems in the order of a round: each round begins with the next one."""
    names = list(systems)
    turn = number % len(names)
    return names[turn:] + names[:turn]


def _overrides(config: object, strategy: str | None, keep: str) -> dict:
    """vLLM's `hf_overrides` for a system; empty for the stock class."""
    if strategy is None:
        return {}
    from vtc.core.budget import parse_keep
    from vtc.vllm.settings import overrides

    return overrides(config, strategy=strategy, keep=parse_keep(keep))


@dataclass
class _Client:
    """The parent's end of the pipe to an engine. log: the file that the engine's output goes to."""

    name: str
    connection: object
    log: Path

    def answer(self, job: Workload | None = None) -> object:
        """Sends a job, if there is one, and waits for the answer; raises RuntimeError when the engine failed."""
        if job is not None:
            self.connection.send(job)
        try:
            kind, answer = self.connection.recv()
        except EOFError:
            kind, answer = "error", "the process ended"
        if kind == "error":
            raise RuntimeError(f"the engine of {self.name} failed: {answer}; see {self.log}")
        return answer

    def end(self) -> None:
        """Tells the engine to end once its current job is done."""
        with suppress(OSError):
            self.connection.send(None)


@contextmanager
def _engines(
    options: ServingOptions, model: ServedPreset, folder: str, systems: dict[str, dict]
) -> Iterator[dict[str, _Client]]:
    """A process with an engine for each system, started one after the other and warmed up."""
    context = multiprocessing.get_context("spawn")
    clients, processes = {}, []
    try:
        for name, overrides in systems.items():
            _tell(f"starting the engine of {name}")
            parent_end, child_end = context.Pipe()
            log = options.output / f"engine-{name.replace(' ', '-')}.log"
            arguments = {**engine_options(options, model), "model": folder, "hf_overrides": overrides}
            process = context.Process(target=serve, args=(child_end, arguments, log), daemon=True)
            # vLLM sets the number of threads only in engines that it starts as processes itself.
            with patch.dict(os.environ, {**ENVIRONMENT, **os.environ, "OMP_NUM_THREADS": str(options.threads)}):
                process.start()
            child_end.close()
            processes.append(process)
            clients[name] = _Client(name, parent_end, log)
            _tell(f"{name}: {clients[name].answer()} KV blocks of {options.block_size} tokens")
        for client in clients.values():
            for concurrency in sorted({1, min(4, max(options.concurrency))}):  # no prompt twice: it would be cached
                client.answer(options.job(model.prompt, concurrency, concurrency, options.rounds + WARM_UP))
        yield clients
    finally:
        for client in clients.values():
            client.end()
        for process in processes:
            process.join(10)
            process.terminate()


def engine_options(options: ServingOptions, model: ServedPreset) -> dict:
    """Arguments of vllm.LLM, the same for every system: enough KV blocks for the largest number of requests at once
    when nothing is pruned."""
    concurrency = max(options.concurrency)
    length = model.visual + options.text + options.new_tokens
    blocks = concurrency * -(-length // options.block_size) + SPARE
    return {
        "dtype": options.dtype, "enforce_eager": not options.compiled, "max_model_len": length + SPARE,
        "max_num_seqs": concurrency, "max_num_batched_tokens": options.batched, "block_size": options.block_size,
        "kv_cache_memory_bytes": blocks * options.block_size * kv_bytes(model.config, DTYPES[options.dtype]),
        "limit_mm_per_prompt": {"image": 1, "video": 0}, "seed": options.seed,
    }  # fmt: skip


def _tell(text: str) -> None:
    say(f"vtc bench serving: {text}", error=True)
