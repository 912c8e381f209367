"""Published architectures of a family, for benchmarks: their sizes, and what is needed to serve one without a hub."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One architecture. config: makes its transformers config; parameters: as published (of the small ones: as built),
    in units; text: how the table of presets describes it; processor: makes its processor from the config and a
    tokenizer, None where serving it is not measured."""

    config: Callable[[], object]
    parameters: int
    text: str
    processor: Callable[[object, object], object] | None = None
