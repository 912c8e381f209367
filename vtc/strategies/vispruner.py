"""VisPruner: the tokens that [CLS] attends to most, and a diverse subset of the others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, EncoderFeatures
from vtc.kernels.bipartite import bipartite_prune
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


def select_tokens(attention: Tensor, features: Tensor, count: int, important_ratio: float) -> Selection:
    """int(count * important_ratio) tokens by attention, the rest of `count` by thinning the others.

    attention [B, N]; features [B, N, D]. The others are thinned in descending order of attention, see
    `vtc.kernels.bipartite`. Returns `keep` [B, count].
    """
    important = int(count * important_ratio)
    score = attention.to(torch.promote_types(attention.dtype, torch.float32))
    order = score.sort(dim=1, descending=True, stable=True).indices.to(features.device)
    leading, others = order[:, :important], order[:, important:]
    diverse = bipartite_prune(
        features.gather(1, others.unsqueeze(-1).expand(-1, -1, features.shape[2])), count - important
    )
    return Selection(torch.cat([leading, others.gather(1, diverse)], 1).sort(dim=1).values)


@METHODS.register("vispruner")
@dataclass(frozen=True)
class VisPruner(Stage):
    """Keeps important tokens by [CLS] attention and diverse ones by thinning the others.

    Of `count` tokens int(count * important_ratio) are important: those with the highest attention of [CLS], head mean.
    The others, in descending order of that attention, are thinned in rounds of 8 by the cosine similarity of the
    projector's inputs, until the rest of the budget is left.

    Knobs:
    - important_ratio: share of the budget for important tokens.
    - layer: the encoder layer whose attention is read (index, or relative depth as a float); best the one whose output
      the projector receives.

    Paper: VisPruner, arXiv 2412.01818 (first version: FasterVLM). Official code: Theia-4869/VisPruner @ aefa01a
    (Apache-2.0 by its README).
    Departures: without [CLS] (SigLIP, Qwen) the score is the mean attention received from all patches, as in other
    implementations; the released code only supports encoders with [CLS]. A round over an odd number of tokens
    has one more at even places (the released indexing fails there). LLaVA-NeXT tile by tile as published, but after the
    model's own unpadding, so padding never competes, and without the newline tokens, whose rows no longer exist;
    Qwen is our extension. Attention is ranked in float32, similarity in float64, because each rank decides the
    rounds that follow (the released code ranks in the model's precision); ties to the lower index, and in a round to
    the token that comes first in the list.
    """

    important_ratio: float = 0.5
    layer: int | float = -2

    needs_cls = True
    tile_scope = "per_tile"

    def __post_init__(self):
        if not 0 <= self.important_ratio <= 1:
            raise ConfigError(f"important_ratio={self.important_ratio} is out of range; possible: 0 to 1")

    def needs(self, encoder: Encoder) -> tuple[ClsAttention | AttentionColumns, EncoderFeatures]:
        """The score, and the projector's input."""
        layer = encoder.layer(self.layer, "layer")
        return ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer, "mean"), EncoderFeatures()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `select_tokens`."""
        score, features = self.needs(encoder)
        return select_tokens(context[score], context[features], context.count, self.important_ratio)
