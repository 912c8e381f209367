"""One row of `vtc bench`: baseline, strategy and oracle take turns on one model, in one process.

Times to the first token and of decoding come from undisturbed runs: marks at the end of each forward, which on a GPU
are CUDA events that the host does not wait for during the run. Vision, selection and prefill come from runs of one
token in which the clock waits for the device; these go first, and warm up the system whose turn it is.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vtc.bench.memory import peak_bytes
from vtc.bench.oracle import NoOracle, Oracle, Recording, difference, record
from vtc.bench.prompts import inputs_of, pictures
from vtc.bench.results import spread
from vtc.bench.subject import Subject
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import TextRelevance
from vtc.kernels.backend import use
from vtc.patching import find_family, patched, report

OWN = "own"  # as a keep: the strategy's own budget
TIMES = ("vision", "observing", "selection", "prefill", "ttft", "decode", "total")
RATIOS = (("ttft", "baseline"), ("ttft", "oracle"), ("decode", "baseline"), ("decode", "oracle"), ("total", "baseline"))
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


@dataclass(frozen=True)
class System:
    """One way of answering. context: what is applied to the model while it runs; inputs: of generate(); get_report:
    gives the vtc report of the last run, or None."""

    name: str
    context: Callable[[], AbstractContextManager]
    inputs: dict[str, Tensor]
    get_report: Callable[[], object]


def measure(
    subject: Subject, case: SpeedCase, new_tokens: int, rounds: int, warmup: int, kernels: str, overrides: dict,
    seed: int, advance: Callable[[], None] = lambda: None,
) -> dict:  # fmt: skip
    """A row as plain data: seconds, bytes, ratios. `advance` is called after each round.

    Raises ConfigError where the visual tokens or the strategy are not possible for this model.
    """
    with use(kernels), _frozen():
        family, inputs = prepare(subject, case, overrides, seed)
        systems = [
            System("baseline", nullcontext, inputs, lambda: None),
            System("strategy", _putting(subject.model, case, overrides), inputs, lambda: report(subject.model)),
        ]
        recording, oracle = _oracle(subject.model, family, systems[1], new_tokens)
        if isinstance(oracle, Oracle):
            systems.append(System("oracle", oracle.fed, oracle.inputs, lambda: None))
            oracle = _check(subject.model, systems[-1], recording)
        systems = [s for s in systems if s.name != "oracle" or "missing" not in oracle]
        seconds = {system.name: {part: [] for part in TIMES} for system in systems}
        for number in range(warmup + rounds):
            turn = number % len(systems)
            for system in systems[turn:] + systems[:turn]:
                figures = _round(subject.model, family, system, new_tokens)
                if number >= warmup:
                    for part, value in figures.items():
                        seconds[system.name][part].append(value)
            advance()
        spaces = {system.name: _memory(subject.model, system, new_tokens) for system in systems}
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
        "rounds": seconds,
    }  # fmt: skip


def prepare(subject: Subject, case: SpeedCase, overrides: dict, seed: int) -> tuple[object, dict[str, Tensor]]:
    """The family and the inputs of a case; raises ConfigError where the strategy cannot be put on the model."""
    images = pictures(find_family(subject.model), case.visual, subject.native, seed, case.frames)
    family = find_family(subject.model)
    resolved(case, family, overrides)
    with _putting(subject.model, case, overrides)():
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
    for part, other in RATIOS:
        if other in seconds:
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


def _putting(model: nn.Module, case: SpeedCase, overrides: dict) -> Callable[[], AbstractContextManager]:
    return lambda: patched(model, case.strategy, **_given(case, overrides))


def _given(case: SpeedCase, overrides: dict) -> dict:
    return overrides if case.keep == OWN else {**overrides, "keep": case.keep}


def generate(model: nn.Module, inputs: dict[str, Tensor], new_tokens: int, **more) -> object:
    """Stock generate()."""
    return model.generate(**inputs, max_new_tokens=new_tokens, **more)


def _oracle(model: nn.Module, family, strategy: System, new_tokens: int) -> tuple[Recording, Oracle | dict]:
    """The recording of the strategy, and its oracle or {"missing": why there is none}."""
    with strategy.context():
        run = partial(generate, model, strategy.inputs, new_tokens, output_logits=True)
        recording = record(family, run, strategy.get_report)
    try:
        return recording, Oracle(family, strategy.inputs, recording)
    except NoOracle as error:
        return recording, {"missing": str(error)}


def _check(model: nn.Module, oracle: System, recording: Recording) -> dict:
    """Checks that the oracle computes what the strategy does, by the logits of the first token."""
    try:
        with oracle.context():
            error = difference(recording, generate(model, oracle.inputs, 2, output_logits=True))
    except NoOracle as missing:
        return {"missing": str(missing)}
    if not error <= SAME[model.dtype]:
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


def _round(model: nn.Module, family, system: System, new_tokens: int) -> dict[str, float]:
    from vtc.eval.running.timing import Stopwatch

    with system.context(), _no_collection():
        with Stopwatch(family) as watch:
            _, round_report, parts = watch.measure(lambda: generate(model, system.inputs, 1), system.get_report)
        ends = _ends(model, lambda: generate(model, system.inputs, new_tokens))
    return {
        "vision": parts["vision"], "observing": 0.0 if round_report is None else round_report.observe_seconds,
        "selection": parts["selection"], "prefill": parts["prefill"],
        "ttft": ends[0], "decode": (ends[-1] - ends[0]) / (len(ends) - 1), "total": ends[-1],
    }  # fmt: skip


def _ends(model: nn.Module, run: Callable[[], object]) -> list[float]:
    """Seconds from the start of `run` to the end of each forward of the model."""
    marks: list = []
    gpu = model.device.type == "cuda"

    def mark(*_) -> None:
        if gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append(event)
        else:
            marks.append(time.perf_counter())

    handle = model.register_forward_hook(mark)
    try:
        if gpu:
            torch.cuda.synchronize(model.device)
        mark()
        run()
    finally:
        handle.remove()
    if not gpu:
        return [end - marks[0] for end in marks[1:]]
    torch.cuda.synchronize(model.device)
    return [marks[0].elapsed_time(end) / 1000 for end in marks[1:]]


def _tensors(layer: object) -> list[torch.Tensor]:
    """What a layer of a cache holds: keys and values, or the states of linear attention."""
    if hasattr(layer, "keys"):
        return [layer.keys, layer.values]
    return [x for states in (layer.conv_states, layer.recurrent_states) for x in states.values() if x is not None]


def _memory(model: nn.Module, system: System, new_tokens: int) -> dict[str, int]:
    """Peak memory and KV bytes, from one more run."""
    existing = [*model.parameters(), *model.buffers(), *system.inputs.values()]
    kv_bytes = []

    def run() -> None:
        cache = generate(model, system.inputs, new_tokens).past_key_values
        kv_bytes.extend(x.nbytes for layer in cache.layers for x in _tensors(layer))

    with system.context(), _no_collection():
        peak = peak_bytes(run, model.device, existing)
    return {"peak_bytes": peak, "kv_bytes": sum(kv_bytes)}
