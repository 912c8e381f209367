"""Published architectures of a family, for benchmarks: their sizes, and what is needed to serve one without a hub."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """One architecture. config: makes its transformers config; parameters: as published (of the small ones: as built),
    in units; text: how the table of presets describes it. For `vtc bench serving`: processor makes its processor from
    the config and a tokenizer, and raises UnsupportedError where that is not possible (None: it has none); side: pixels
    along the square pictures that are sent to it, None for those of the tower's image_size."""

    config: Callable[[], object]
    parameters: int
    text: str
    processor: Callable[[object, object], object] | None = None
    side: int | None = None
