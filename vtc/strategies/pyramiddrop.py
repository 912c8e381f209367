"""PyramidDrop: several drops at even depths of the language model, each ranked by the last prompt token."""

from dataclasses import dataclass

from vtc.core.selection import Selection
from vtc.core.signals import Context, Decoder, DecoderAttention
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step, steps_at


@METHODS.register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(DecoderStage):
    """Keeps, before each listed layer, the tokens that the last prompt token would attend to most in that layer.

    The score is the softmax attention of that row over the whole prompt, averaged over heads, from the norm, the
    projections and the rotary positions of the next layer.

    Knobs:
    - layer_list: layers before which tokens are dropped (0-based number, or relative depth as a float); 8, 16 and 24 of
      32 are published.
    - image_token_ratio_list: tokens that each of these layers and the following ones see, as shares of the visual
      tokens that entered the language model; int(N * ratio) tokens.

    Paper: PyramidDrop, arXiv 2410.17247. Official code: Cooperx521/PyramidDrop @ 6444f304 (its README names no
    licence), layers 8, 16 and 24 of 32.
    Departures: on models with fewer key heads than query heads, each key head serves its group of query heads (the code
    supports equal numbers only); every image of a prompt is ranked and dropped on its own; a drop leaves at least one
    token; padding on either side; float32, ties to the lower index. Positions are renumbered after each drop as in the
    code, but kept on Qwen, whose 2-D positions a plain renumbering would flatten. On LLaVA-NeXT the layers' shares
    apply to the whole image, all tiles together. If layers coincide on a shallow model the smallest share applies.
    """

    layer_list: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    image_token_ratio_list: tuple[float, ...] = (0.5, 0.25, 0.125)

    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """One step per listed layer."""
        knobs = "layer_list", "image_token_ratio_list"
        return steps_at(self.layer_list, self.image_token_ratio_list, decoder, knobs)

    def needs(self, decoder: Decoder, step: int) -> tuple[DecoderAttention]:
        """The last prompt token's row in the next layer."""
        return (DecoderAttention(self.steps(decoder)[step].layer, "last"),)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """Top `count` of that row."""
        (signal,) = self.needs(decoder, context.step)
        return Selection(topk_sorted(context[signal], context.count))
