"""ApET, second stage: the same selection once more, halfway through the language model."""

from dataclasses import dataclass
from typing import Literal

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, Hidden
from vtc.strategies import METHODS
from vtc.strategies.apet_projector import check_knobs, first_of, select_tokens
from vtc.strategies.base import DecoderStage, Step


@METHODS.register("apet")
@dataclass(frozen=True)
class ApET(DecoderStage):
    """Keeps, before one layer, the tokens whose hidden states a small basis reconstructs worst; merges the others.

    The rule of `apet_projector` applied to hidden states; basis tokens take the weakest slots, by descending error.

    Knobs:
    - layer: layers that run before (a number, or relative depth as a float); 16 of 32 are published.
    - ratio: share of the tokens that entered the language model, rounded to nearest: the scripts have 32 of 96 and 64
      of 192.
    - basis: as in `apet_projector`.
    - first: as in `apet_projector`.
    - seed: as in `apet_projector`.

    Paper: ApET, CVPR 2026, arXiv 2602.19870. Official code: Maqkccx/ApET @ 70cc01b (MIT). In the shipped strategy
    `apet_projector` comes first; with 96 and 32 tokens 64 are left on average over the layers.
    Departures: those of `apet_projector`; several images, batches and padding. Positions are renumbered as in the code,
    but kept on Qwen.
    """

    layer: int | float = 0.5
    ratio: float = 0.33333
    basis: int = 10
    first: int | Literal["mean", "random"] = 0
    seed: int = 0

    def __post_init__(self):
        check_knobs(self)
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"ratio={shown(self.ratio)} is out of range; possible: a share kept in (0, 1]")

    def steps(self, decoder: Decoder) -> tuple[Step]:
        """One step."""
        return (Step(decoder.layer(self.layer, "layer"), self.ratio),)

    def count(self, entered: int, share: float) -> int:
        """Rounded to nearest, halves to even; at least 1."""
        return max(1, round(entered * share))

    def needs(self, decoder: Decoder, step: int) -> tuple[Hidden]:
        """The hidden states."""
        return (Hidden(),)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """See `select_tokens` of `apet_projector`; exactly `count`."""
        hidden = context[Hidden()]
        first = first_of(hidden, self.first, self.seed, context.ordinals)
        return select_tokens(hidden, context.count, self.basis, first, by_error=True)
