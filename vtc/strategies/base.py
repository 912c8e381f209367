"""The contract of a method: a frozen dataclass of knobs that names its signals and computes a Selection."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from vtc.selection import Selection
from vtc.signals import Context, Encoder, Signal


@dataclass(frozen=True)
class Stage(ABC):
    """One selection method with its knobs as typed dataclass fields.

    A subclass never sees a model: it declares signals for an encoder and gets tensors. site: where the stage acts.
    grid: it needs the tokens as one raster. needs_cls: it ranks by a [CLS] query (see ClsAttention for encoders
    without one).
    """

    site: ClassVar[str] = "projector"
    grid: ClassVar[bool] = False
    needs_cls: ClassVar[bool] = False

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """The signals to collect, layers resolved to indices; raises ConfigError beyond the encoder's depth."""
        return ()

    @abstractmethod
    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Chooses `context.count` of `context.tokens` tokens in each of the B units."""
