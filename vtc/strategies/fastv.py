"""FastV: one drop after the first layers of the language model, by the attention of the last prompt token."""

from dataclasses import dataclass

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, DecoderAttention
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step


@METHODS.register("fastv")
@dataclass(frozen=True)
class FastV(DecoderStage):
    """Keeps, from the next layer on, the tokens that the last prompt token attends to most in the K-th layer.

    The score is the softmax attention of that row, averaged over heads, as computed by layer K itself.

    Knobs:
    - K: layers that see every token (a number, or relative depth as a float; at least 1); 2 of 32 are published.
    - R: share of the visual tokens to remove (paper: 0.5, 0.75, 0.875); keeps round(N * (1 - R)), halves to even.

    Paper: FastV (An Image is Worth 1/2 Tokens After Layer 2), arXiv 2403.06764. Official code: pkunlp-icler/FastV (no
    licence for the whole), the variant that drops tokens in place at prefill and keeps their position ids.
    Departures: the image is found by its placeholders (the code assumes that it starts at token 36, one too late for
    LLaVA-1.5); layer K runs once (the code with a cache runs it twice and stores its keys twice); only one row of
    attention is computed, whatever the attention implementation; each prompt of a batch ranks its own images (in the
    code the first prompt decides), and each of several images keeps its own share. Float32, ties to the lower index
    (the code ranks in the model's precision). On LLaVA-NeXT and Qwen, where nothing is published, the same rule applies
    to N visual tokens; for depths other than 32 the layer is set by relative depth.
    """

    K: int | float = 0.0625
    R: float = 0.5

    def __post_init__(self):
        if not 0 <= self.R < 1:
            raise ConfigError(f"R={self.R} is out of range; possible: a share removed in [0, 1)")

    def steps(self, decoder: Decoder) -> tuple[Step]:
        """One step, after K layers."""
        return (Step(decoder.layer(self.K, "K"), 1 - self.R),)

    def count(self, entered: int, share: float) -> int:
        """Rounded to nearest, halves to even; at least 1."""
        return max(1, round(entered * share))

    def needs(self, decoder: Decoder, step: int) -> tuple[DecoderAttention]:
        """The last prompt token's row in the last full layer."""
        return (DecoderAttention(decoder.layer(self.K, "K") - 1, "last", ahead=False),)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Top `count` of that row."""
        (signal,) = self.needs(decoder, context.step)
        return Selection(topk_sorted(context[signal], context.count))
