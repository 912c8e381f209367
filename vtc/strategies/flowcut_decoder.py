"""FlowCut, second stage: one drop after the first layers of the language model, by the last prompt token."""

from dataclasses import dataclass

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, ImageAttention, ValueNorms
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step
from vtc.strategies.flowcut import flow


@METHODS.register("flowcut_decoder")
@dataclass(frozen=True)
class FlowCutDecoder(DecoderStage):
    """Keeps the tokens with the highest (a / sum a + g / sum g) * w in the last full layer, from the next layer on.

    a: softmax over the image's tokens of the last prompt token's query times their keys; g: the same for its value
    times their values; both scaled by sqrt(head dim), head means; w: the L1 norm of a token's head-averaged value.

    Knobs:
    - layer: layers that see every token (a number, or relative depth as a float): 2 of 32.
    - ratio: share of the entering tokens to keep; with 1 there is no drop.

    Paper: FlowCut, arXiv 2505.19536, NeurIPS 2025; official code: TungChintao/FlowCut @ a2ecd24 (Apache-2.0): second
    stage on LLaVA-NeXT, where five crops of K / 2 tokens enter and K stay (ratio 0.4), and on Qwen2-VL, where 2K enter
    and K stay (0.5). In the shipped strategy `flowcut` comes first; LLaVA-1.5 has no second stage (1.0). Departures:
    the number is a share of the entering tokens (the code keeps K, however many unpadding left); each of several images
    is ranked on its own; padding on either side. Positions are renumbered on LLaVA-NeXT and kept on Qwen, as in the
    code. Qwen2.5-VL is an extension. Float32, ties to the lower index.
    """

    layer: int | float = 0.0625
    ratio: float = 0.4

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ConfigError(f"ratio={self.ratio} is out of range; possible: a share kept in (0, 1]")

    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """One step after `layer` layers, none if all tokens are kept."""
        return (Step(decoder.layer(self.layer, "layer"), self.ratio),) if self.ratio < 1 else ()

    def needs(self, decoder: Decoder, step: int) -> tuple[ImageAttention, ValueNorms, ImageAttention]:
        """Attention, value norms and value similarity in the last full layer."""
        layer = decoder.layer(self.layer, "layer") - 1
        return ImageAttention(layer), ValueNorms(layer), ImageAttention(layer, values=True)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Top `count` of the score."""
        signals = self.needs(decoder, context.step)
        return Selection(topk_sorted(flow(*(context[signal] for signal in signals)), context.count))
