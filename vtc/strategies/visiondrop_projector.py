"""VisionDrop, first stage: keeps [CLS] and the patches that it attends to, and merges the rest, at the projector."""

from dataclasses import dataclass

from torch.nn.functional import pad

from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, EncoderKeys, Signal, Unprojected
from vtc.kernels.merge import contextual_merge, merged_slots
from vtc.kernels.topk import topk_sorted
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@METHODS.register("visiondrop_projector")
@dataclass(frozen=True)
class VisionDropProjector(Stage):
    """Keeps dominant tokens and merges the others into contextual ones, in the projector's input.

    Of `count` tokens c = round(count * contextual) are contextual. Dominant tokens are [CLS] and the top count - c - 1
    patches by its attention. The others are merged into evenly spaced targets by the cosine of their attention keys; a
    target becomes itself plus their mean (see `vtc.kernels.merge`). In the sequence [CLS] comes first, then the
    dominant patches, then the contextual tokens. [CLS] has no place among the tokens: its position is the lowest free
    one. The encoder runs on all tokens and this stage sets the projector's input, hence its name; `visiondrop` is the
    stage inside the language model.

    Knobs:
    - contextual: share of the budget for contextual tokens; 6 of 48 are published.
    - layer: the encoder layer whose attention and keys are read (index, or relative depth as a float); best the one
      whose output the projector receives.

    Paper: VisionDrop, arXiv 2506.22283. Official code: Ruixxxx/VisionDrop @ f7a9444 (Apache-2.0), LLaVA-1.5 only, where
    the published setting is 42 dominant tokens ([CLS] among them) and 6 contextual ones.
    Departures: without [CLS] (SigLIP, Qwen) the score is the mean over all patch queries, as in the paper, and the top
    count - c patches are dominant. A budget that keeps every token changes nothing, so [CLS] is not added. A budget too
    small for a contextual token drops the others. LLaVA-NeXT tile by tile, SigLIP and Qwen are extensions of ours.
    Float32, ties to the lower index (the code compares in float16).
    """

    contextual: float = 0.125
    layer: int | float = -2

    grid = True
    tile_scope = "per_tile"
    needs_cls = True

    def __post_init__(self):
        if not 0 <= self.contextual < 1:
            raise ConfigError(f"contextual={self.contextual} is out of range; possible: a share in [0, 1)")

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """The score, the merge metric and the projector's input, from one layer."""
        layer = encoder.layer(self.layer, "layer")
        score = ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer, "mean")
        return score, EncoderKeys(layer), Unprojected()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `vtc.kernels.merge`; exactly `count` slots."""
        score, keys, _ = self.needs(encoder)
        all_stay = context.count == context.tokens
        cls = encoder.has_cls and not all_stay
        contextual = 0 if all_stay else min(round(context.count * self.contextual), context.count - cls)
        dominant = topk_sorted(context[score], context.count - contextual - cls)
        keep, order, target, weight = merged_slots(dominant, contextual_merge(context[keys], dominant, contextual), cls)
        if encoder.has_cls and all_stay:
            target, weight = pad(target, (1, 0), value=-1), pad(weight, (1, 0))
        return Selection(keep, merge=Merge(target, weight, unprojected=True), order=order)
