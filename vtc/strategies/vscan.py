"""VScan, second stage: one drop in the middle of the language model, by the attention of the last prompt token."""

from dataclasses import dataclass

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, DecoderAttention
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step


@METHODS.register("vscan")
@dataclass(frozen=True)
class VScan(DecoderStage):
    """Keeps, before one layer, the tokens that the last prompt token would attend to most in it.

    The score is the softmax attention of that one row over the whole prompt, averaged over heads, from the norm, the
    projections and the rotary positions of the next layer.

    Knobs:
    - layer: layers that run before (a number, or relative depth as a float): 16 of 32, 14 of 28.
    - ratio: share of the entering tokens to keep, rounded to nearest: a third, 32 of 96.

    Paper: VScan, TMLR 2026, arXiv 2505.22654. Official code: Tencent/SelfEvolvingAgent @ a82450e, folder VScan (MIT).
    In the shipped strategy `vscan_projector` comes first, with 96 of 576 tokens, so that 64 are left on average over
    layers; `keep` sets what it keeps.
    Departures: counts are shares, since the code's numbers fit one budget only; each of several images is pruned on its
    own; padding on either side. Float32, ties to the lower index.
    """

    layer: int | float = 0.5
    ratio: float = 0.3333

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"ratio={self.ratio} is out of range; possible: a share in (0, 1]")

    def steps(self, decoder: Decoder) -> tuple[Step]:
        """One step, after `layer` layers."""
        return (Step(decoder.layer(self.layer, "layer"), self.ratio),)

    def count(self, entered: int, share: float) -> int:
        """Rounded to nearest, halves to even; at least 1."""
        return max(1, round(entered * share))

    def needs(self, decoder: Decoder, step: int) -> tuple[DecoderAttention]:
        """The last prompt token's row in the next layer."""
        return (DecoderAttention(self.steps(decoder)[step].layer, "last"),)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Top `count` of that row."""
        (signal,) = self.needs(decoder, context.step)
        return Selection(topk_sorted(context[signal], context.count))
