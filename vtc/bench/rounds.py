"""One row of `vtc bench`: baseline, strategy and oracle take turns on one model, in one process.

Times to the first token and of decoding come from undisturbed runs: marks when the logits of a forward are read, which
on a GPU are CUDA events that the host does not wait for during the run. Vision, selection and prefill come from runs of
one token in which the clock waits for the device; these go first, and warm up the system whose turn it is.
"""

import gc
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vtc.bench.memory import peak_bytes
from vtc.bench.oracle import NoOracle, Oracle, Recording, difference, record
from vtc.bench.prompts import inputs_of, pictures
from vtc.bench.results import spread
from vtc.bench.subject import Subject
from vtc.bench.systems import System, compiled, graphs
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import TextRelevance
from vtc.kernels.backend import use
from vtc.patching import find_family, patched, report

OWN = "own"  # as a keep: the strategy's own budget
RATIOS = (("ttft", "baseline"), ("ttft", "oracle"), ("decode", "baseline"), ("decode", "oracle"), ("total", "baseline"))
NOISY = 1.15  # of the middle half of the rounds, the largest over the smallest
FEW = 5  # rounds of which nothing is said about noise
SAME = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # logits of strategy and oracle, rounding apart


@dataclass(frozen=True)
class SpeedCase:
    """What a row measures. keep: as text; prompt: tokens that are not visual; visual: visual tokens asked
    for; frames: pictures of the one clip that is shown instead of images, None for images."""

    strategy: str
    keep: str
    batch: int
    prompt: int
    visual: int
    frames: int | None = None

    @property
    def key(self) -> tuple:
        """The row's among those of one result, all of whose rows have the same `frames`."""
        return self.strategy, self.keep, self.batch, self.prompt, self.visual


def measure(
    subject: Subject, case: SpeedCase, new_tokens: int, rounds: int, warmup: int, kernels: str, overrides: dict,
    seed: int, compile_steps: bool = False, advance: Callable[[], None] = lambda: None,
) -> dict:  # fmt: skip
    """A row as plain data: seconds, bytes, ratios. compile_steps: decode with a static cache, in compiled steps;
    `advance` is called after each round. A noisy row goes on for up to as many rounds again.

    Raises ConfigError where the visual tokens or the strategy are not possible for this model.
    """
    with ExitStack() as stack:
        stack.enter_context(use(kernels))
        stack.enter_context(_frozen())
        family, inputs = prepare(subject, case, overrides, seed)
        strategy = System("strategy", family, inputs, partial(_putting, case, overrides), report)
        recording, fed = _oracle(strategy, new_tokens, compile_steps)
        systems = [System("baseline", family, inputs), strategy, *([fed] if isinstance(fed, System) else [])]
        if compile_steps:
            systems = stack.enter_context(compiled(systems))
        oracle = _check(systems[2], recording) if isinstance(fed, System) else fed
        systems = [s for s in systems if s.name != "oracle" or "missing" not in oracle]
        seconds: dict[str, dict[str, list[float]]] = {system.name: {} for system in systems}
        for number in range(warmup + 2 * rounds):
            if number >= warmup + rounds and not noisy(seconds["baseline"]):
                break
            turn, before = number % len(systems), graphs() if compile_steps else 0
            for system in systems[turn:] + systems[:turn]:
                figures = _round(system, new_tokens)
                if number >= warmup:
                    for part, value in figures.items():
                        seconds[system.name].setdefault(part, []).append(value)
            if compile_steps and number >= warmup and graphs() > before:
                raise ConfigError(
                    f"steps of {case.strategy} were compiled anew in round {number - warmup + 1}, which would be "
                    "timed; possible: --warmup 2 or more"
                )
            if number < warmup + rounds:
                advance()
        spaces = {system.name: _memory(system, new_tokens) for system in systems}
    outcome = recording.report
    counts = {
        "visual": outcome.tokens_before // case.batch,
        "entered": sum(image.entered for image in outcome.images) // case.batch,
        "average": outcome.average_tokens / case.batch,
        "images": len(outcome.images) // case.batch,
    }
    return {
        "strategy": case.strategy, "keep": case.keep, "batch": case.batch, "prompt": case.prompt, "asked": case.visual,
        "tokens": counts, "notes": outcome.notes, "oracle": oracle,
        "resolved": outcome.strategy,
        "systems": {
            name: {**{p: spread(v) for p, v in parts.items()}, **_rate(parts, case.batch * new_tokens), **spaces[name]}
            for name, parts in seconds.items()
        },
        "ratios": ratios(seconds, spaces), "scoring": _scoring(family, case, overrides, seconds["strategy"]),
        "rounds": seconds, "noisy": noisy(seconds["baseline"]),
        **({"compiled": compile_steps} if compile_steps else {}),
    }  # fmt: skip


def prepare(subject: Subject, case: SpeedCase, overrides: dict, seed: int) -> tuple[object, dict[str, Tensor]]:
    """The family and the inputs of a case; raises ConfigError where the strategy cannot be put on the model."""
    images = pictures(find_family(subject.model), case.visual, subject.native, seed, case.frames)
    family = find_family(subject.model)
    resolved(case, family, overrides)
    with _putting(case, overrides, family):
        pass
    return family, inputs_of(family, images, case.prompt, case.batch, seed)


def resolved(case: SpeedCase, family, overrides: dict) -> dict:
    """The strategy as it will run; raises ConfigError for one that reads the question (random prompts have none) or
    keeps everything."""
    config = resolve(case.strategy, family.name, **_given(case, overrides))
    reads = [s.method for s in config.stages if s.stage.needs_text]
    if config.projector is not None:
        needs = config.projector.stage.needs(family.encoder)
        reads += [config.projector.method for signal in needs if isinstance(signal, TextRelevance)]
    if reads:
        raise ConfigError(
            f"strategy {case.strategy!r}: {reads[0]} reads the question with a processor, and the prompts of vtc bench "
            "are random; possible: vtc bench selection for the cost of choosing alone"
        )
    if config.keeps_all:
        raise ConfigError(f"strategy {case.strategy!r} with keep 1.0 leaves the model alone; possible: keep below 1.0")
    return config.dump()


def ratios(seconds: dict, spaces: dict) -> dict:
    """Ratios of the strategy to the other systems, part by part; those of times are taken within each round."""
    result = {}
    measured = [*RATIOS, *((f"{part}_cpu", other) for part, other in RATIOS)]
    for part, other in measured:
        if part in seconds.get(other, ()):
            pairs = zip(seconds["strategy"][part], seconds[other][part], strict=True)
            result[f"{part}/{other}"] = spread([a / b for a, b in pairs])
    for key in ("peak_bytes", "kv_bytes"):
        value = spaces["strategy"][key] / spaces["baseline"][key]
        result[f"{key.removesuffix('_bytes')}/baseline"] = {"median": value, "min": value, "max": value}
    return result


def _scoring(family, case: SpeedCase, overrides: dict, seconds: dict) -> dict | None:
    """What observing one layer of the encoder costs relative to the layer; None where no encoder layer is observed, or
    layers of the language model are observed too."""
    config = resolve(case.strategy, family.name, **_given(case, overrides))
    needs = () if config.projector is None or config.decoder else config.projector.stage.needs(family.encoder)
    observed = {signal.layer for signal in needs if hasattr(signal, "layer")}
    if not observed:
        return None
    depth = family.encoder.depth
    shares = [a / len(observed) / (b / depth) for a, b in zip(seconds["observing"], seconds["vision"], strict=True)]
    return {"observed": len(observed), "depth": depth, **spread(shares)}


def _rate(parts: dict, tokens: int) -> dict:
    return {"rate": spread([tokens / seconds for seconds in parts["total"]])}


def _putting(case: SpeedCase, overrides: dict, family) -> AbstractContextManager:
    return patched(family.model, case.strategy, **_given(case, overrides))


def _given(case: SpeedCase, overrides: dict) -> dict:
    return overrides if case.keep == OWN else {**overrides, "keep": case.keep}


def _oracle(strategy: System, new_tokens: int, static: bool) -> tuple[Recording, System | dict]:
    """The recording of the strategy, and its oracle or {"missing": why there is none}. static: with a static cache."""
    family, inputs = strategy.family, strategy.inputs
    with strategy.context():
        run = partial(strategy.generate, new_tokens, output_logits=True)
        recording = record(family, run, strategy.report)
    try:
        oracle = Oracle(family, inputs, recording)
        if static and oracle.columns:
            raise NoOracle("layers of a static cache that hold different numbers of tokens need masks of their own")
    except NoOracle as error:
        return recording, {"missing": str(error)}
    return recording, System("oracle", family, oracle.inputs, lambda own: Oracle(own, inputs, recording).fed())


def _check(oracle: System, recording: Recording) -> dict:
    """Checks that the oracle computes what the strategy does, by the logits of the first token."""
    try:
        with oracle.context():
            error = difference(recording, oracle.uncompiled(2, output_logits=True))
    except NoOracle as missing:
        return {"missing": str(missing)}
    if not error <= SAME[oracle.model.dtype]:
        return {"missing": f"fed the strategy's tokens, the model gives other logits (by {error:.2g} of the largest)"}
    return {"difference": error}


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage is collected before the block and not during it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _frozen() -> Iterator[None]:
    """Objects that exist now are left out of garbage collections, which would otherwise take longer than a small
    model's forward."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _round(system: System, new_tokens: int) -> dict[str, float]:
    from vtc.eval.running.timing import Stopwatch

    with system.context(), _no_collection():
        with Stopwatch(system.family) as watch:
            _, round_report, parts = watch.measure(lambda: system.uncompiled(1), system.report)
        clock, cpu = system.ends(new_tokens)
    return {
        "vision": parts["vision"], "observing": 0.0 if round_report is None else round_report.observe_seconds,
        "selection": parts["selection"], "prefill": parts["prefill"], **_of_ends(clock, ""),
        **({} if cpu is None else _of_ends(cpu, "_cpu")),
    }  # fmt: skip


def _of_ends(ends: list[float], suffix: str) -> dict[str, float]:
    parts = {"ttft": ends[0], "decode": (ends[-1] - ends[0]) / (len(ends) - 1), "total": ends[-1]}
    return {part + suffix: value for part, value in parts.items()}


def noisy(baseline: dict[str, list[float]]) -> bool:
    """Whether the middle half of the baseline's times to the first token lies more than NOISY apart: of its CPU time,
    which other work disturbs less, or by the clock on a GPU."""
    times = sorted(baseline.get("ttft_cpu", baseline["ttft"]))
    if len(times) < FEW:
        return False
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high > NOISY * low


def _tensors(layer: object) -> list[torch.Tensor]:
    """What a layer of a cache holds: keys and values, or the states of linear attention."""
    if hasattr(layer, "keys"):
        return [layer.keys, layer.values]
    return [x for states in (layer.conv_states, layer.recurrent_states) for x in states.values() if x is not None]


def _memory(system: System, new_tokens: int) -> dict[str, int]:
    """Peak memory and KV bytes, from one more run."""
    existing = [*system.model.parameters(), *system.model.buffers(), *system.inputs.values()]
    kv_bytes = []

    def run() -> None:
        cache = system.uncompiled(new_tokens).past_key_values
        kv_bytes.extend(x.nbytes for layer in cache.layers for x in _tensors(layer))

    with system.context(), _no_collection():
        peak = peak_bytes(run, system.model.device, existing)
    return {"peak_bytes": peak, "kv_bytes": sum(kv_bytes)}
