"""VisionDrop, later stages: inside the language model, by the attention among the image's tokens."""

from dataclasses import dataclass

from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import Context, Decoder, DecoderAttention, DecoderKeys
from vtc.kernels.merge import contextual_merge, merged_slots
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import DecoderStage, Step, steps_at


@METHODS.register("visiondrop")
@dataclass(frozen=True)
class VisionDrop(DecoderStage):
    """Keeps, before each listed layer, dominant tokens and merges the others into contextual ones; no text is used.

    The score of a token is the attention that it would receive in that layer from all tokens of its image, averaged
    over heads and queries. The others are merged into evenly spaced targets by the cosine of that layer's keys; a
    target becomes itself plus their mean (see `vtc.kernels.merge`). The sequence has dominant tokens first, then
    contextual ones.

    Knobs:
    - layers: layers before which tokens are dropped and merged (0-based number, or relative depth as a float); 8, 16
      and 24 of 32 are published.
    - ratios: tokens of each step as shares of those that entered the language model, rounded to nearest.
    - contextual: share of each step's tokens that is contextual, rounded to nearest.

    The defaults give the published 30 + 5, 22 + 4, 16 + 3 of 48. A list [dominant, contextual] for an image that enters
    with E tokens is the ratio (dominant + contextual) / E and the share contextual / (dominant + contextual); absolute
    lists are not a knob, since they fit only one E.

    Paper: VisionDrop, arXiv 2506.22283. Official code: Ruixxxx/VisionDrop @ f7a9444 (Apache-2.0), LLaVA-1.5 with 32
    tokens on average over the layers: 48, 35, 26 and 19 in the four quarters of the language model. In the shipped
    strategy `visiondrop_projector` comes first, and `keep` sets what it keeps: keep / the mean of the shares over
    layers, 1.5 times the target, which is the paper's rule. For targets other than 32 these lists are inferred: the
    authors released none.
    Departures: the score stays causal as in the code, which favours the first tokens of an image; several images each
    merge within themselves (the code uses the first only); key heads that serve several query heads; padding on either
    side; a step that drops nothing merges nothing. Positions are renumbered as in the code, but kept on Qwen, whose 2-D
    positions renumbering would flatten. LLaVA-NeXT and Qwen are our extensions. Float32, ties to the lower index.
    """

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    ratios: tuple[float, ...] = (0.73, 0.54, 0.4)
    contextual: tuple[float, ...] = (0.143, 0.154, 0.158)

    def __post_init__(self):
        if len(self.contextual) != len(self.layers):
            raise ConfigError(
                f"{len(self.layers)} layers and {len(self.contextual)} contextual shares; possible: as many of one as "
                "of the other"
            )
        if any(not 0 <= share < 1 for share in self.contextual):
            raise ConfigError(f"contextual={list(self.contextual)} is out of range; possible: shares in [0, 1)")

    def steps(self, decoder: Decoder) -> tuple[Step, ...]:
        """One step per listed layer."""
        return steps_at(self.layers, self.ratios, decoder)

    def count(self, entered: int, share: float) -> int:
        """Rounded to nearest, halves to even; at least 1."""
        return max(1, round(entered * share))

    def contextual_count(self, context: Context, decoder: Decoder) -> int:
        """How many of the step's tokens are contextual: none if no token is dropped. If layers coincide on a shallow
        model the last share applies, as it does for `ratios`."""
        if context.count == context.tokens:
            return 0
        layers = (decoder.layer(value, "layers") for value in self.layers)
        shares = list(dict(zip(layers, self.contextual, strict=True)).values())
        return round(context.count * shares[context.step])

    def needs(self, decoder: Decoder, step: int) -> tuple[DecoderAttention, DecoderKeys]:
        """The image's attention to itself and the merge metric, in the next layer."""
        layer = self.steps(decoder)[step].layer
        return DecoderAttention(layer, "image"), DecoderKeys(layer)

    def select(self, context: Context, decoder: Decoder) -> Selection:
        """See `vtc.kernels.merge`; exactly `count` slots."""
        score, keys = self.needs(decoder, context.step)
        contextual = self.contextual_count(context, decoder)
        dominant = topk_sorted(context[score], context.count - contextual)
        keep, order, target, weight = merged_slots(dominant, contextual_merge(context[keys], dominant, contextual))
        return Selection(keep, merge=Merge(target, weight), order=order)
