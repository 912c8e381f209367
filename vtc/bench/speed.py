"""`vtc bench`: the options, checked as a whole before anything is timed, and then measured row by row."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

from vtc.bench.results import Results, environment
from vtc.bench.rounds import OWN, SpeedCase, measure, prepare, resolved
from vtc.bench.speed_rows import SPEED
from vtc.bench.subject import Chosen, attention_of, choose, device_of, dtype_of
from vtc.bench.systems import check_compiler
from vtc.core.budget import parse_keep
from vtc.core.errors import ConfigError
from vtc.kernels.backend import CHOICES, INSTALLED, interpreted
from vtc.patching import find_family

SWEEP = (64, 144, 256, 400, 576)  # visual tokens of --break-even
LIST = "possible: values with commas between, such as {}"


@dataclass(frozen=True)
class SpeedOptions:
    """The command line. keeps: as text; warmup: rounds before those that count (default: 1 on a CPU, 3 on a GPU);
    overrides: of every strategy; frames: pictures of a clip that is shown instead of images; compiled: decode with a
    static cache, in compiled steps."""

    output: Path
    preset: str | None = None
    model: str | None = None
    strategies: tuple[str, ...] = ("hiprune",)
    keeps: tuple[str, ...] = ("0.25",)
    batches: tuple[int, ...] = (1,)
    prompts: tuple[int, ...] = (64,)
    visual: tuple[int, ...] = (576,)
    new_tokens: int = 16
    rounds: int = 9
    warmup: int | None = None
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None
    kernels: str = "auto"
    seed: int = 0
    overrides: dict = field(default_factory=dict)
    frames: int | None = None
    compiled: bool = False
    overwrite: bool = False

    def __post_init__(self):
        for name, minimum in (("new_tokens", 2), ("rounds", 1), ("warmup", 0), ("seed", 0), ("frames", 1)):
            if getattr(self, name) is not None and getattr(self, name) < minimum:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} {getattr(self, name)} is out of range; possible: {minimum} or more")
        if self.compiled and self.warmup == 0:
            raise ConfigError("--warmup 0 would time the compiler; possible with --compiled: 1 or more")
        if self.kernels not in CHOICES:
            raise ConfigError(f"--kernels {self.kernels!r} is unknown; possible: {', '.join(CHOICES)}")
        for keep in self.keeps:
            if keep != OWN:
                parse_keep(keep)

    def cases(self) -> list[SpeedCase]:
        """Every row, each once."""
        rows = product(self.visual, self.batches, self.prompts, self.strategies, self.keeps)
        return list(dict.fromkeys(SpeedCase(s, k, b, p, v, self.frames) for v, b, p, s, k in rows))


def run(options: SpeedOptions, watch: Callable[[list[SpeedCase], int], object]) -> Results:
    """Measures what is not in the output folder yet. watch: takes the rows to measure and the rounds of each, and gives
    a context with `begin(case)` and `advance()`. Raises ConfigError in one line before anything is timed."""
    device = device_of(options.device)
    dtype = dtype_of(options.dtype, device)
    if options.kernels == "triton" and not (INSTALLED and (device.type == "cuda" or interpreted())):
        raise ConfigError(f"--kernels 'triton' does not run on {device.type} here; possible: auto, reference")
    if options.compiled:
        check_compiler(device)
    attention = attention_of(options.attention, device, dtype)
    chosen = choose(options.preset, options.model, device, dtype, attention, options.seed)
    warmup = options.warmup if options.warmup is not None else 3 if device.type == "cuda" else 1
    results = Results(SPEED, options.output, _settings(options, warmup, chosen), environment(device), options.overwrite)
    family = find_family(chosen.skeleton.model)
    todo = [c for c in options.cases() if not results.has(c.key, resolved(c, family, options.overrides))]
    for case in todo:
        prepare(chosen.skeleton, case, options.overrides, options.seed)
    if not todo:
        return results
    subject = chosen.load()
    with watch(todo, warmup + options.rounds) as progress, _quiet():
        for case in todo:
            progress.begin(case)
            row = measure(
                subject, case, options.new_tokens, options.rounds, warmup, options.kernels, options.overrides,
                options.seed, options.compiled, progress.advance,
            )  # fmt: skip
            results.add(row)
    return results


def _settings(options: SpeedOptions, warmup: int, chosen: Chosen) -> dict:
    return {
        **chosen.identity, "kernels": options.kernels, "new tokens": options.new_tokens, "rounds": options.rounds,
        "warm-up rounds": warmup, "seed": options.seed, "set": options.overrides,
        **({} if options.frames is None else {"frames": options.frames}),
        **({"decoding": "static cache, compiled steps"} if options.compiled else {}),
    }  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that transformers gives on generate()."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def texts(option: str, given: str, example: str = "hiprune,fastv") -> tuple[str, ...]:
    """The entries of a list; raises ConfigError for an empty one."""
    parts = tuple(part.strip() for part in given.split(","))
    if not all(parts):
        raise ConfigError(f"{option} {given!r} has an empty entry; {LIST.format(example)}")
    return parts


def numbers(option: str, given: str, example: str = "576,2880") -> tuple[int, ...]:
    """The entries of a list of whole numbers from 1; raises ConfigError."""
    parts = texts(option, given, example)
    if not all(re.fullmatch("0*[1-9][0-9]{0,17}", part) for part in parts):
        raise ConfigError(f"{option} {given!r} is no list of whole numbers >= 1; {LIST.format(example)}")
    return tuple(int(part) for part in parts)
