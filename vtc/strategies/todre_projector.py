"""ToDRE, first stage: a diverse set of tokens, grown from the one that [CLS] attends to most."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.selection import Selection
from vtc.core.signals import ClsAttention, Context, Encoder, Features
from vtc.kernels.diversity import maxmin_greedy, maxsum_greedy
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


def selection_order(
    attention: Tensor, features: Tensor, count: int, objective: str = "sum", candidates: int | None = None
) -> Tensor:
    """The selected tokens [B, count] in order of selection.

    attention [B, N]; features [B, N, D]. The first is the highest of the first `candidates` tokens by attention (None:
    of all). objective: "sum" adds the token with the smallest sum of cosine similarities to the chosen ones, "max" the
    one with the smallest similarity to its nearest chosen one.
    """
    pivot = attention.to(features.device, torch.promote_types(attention.dtype, torch.float32))[:, :candidates].argmax(1)
    if objective == "max":
        return maxmin_greedy(features, count, first=pivot)
    return maxsum_greedy(features, pivot, count)


@METHODS.register("todre_projector")
@dataclass(frozen=True)
class ToDREProjector(Stage):
    """Keeps a diverse set of projected features, grown from the token that [CLS] attends to most.

    It acts at the projector, on projected features, hence its name; `todre` is the stage inside the language model. If
    several tiles compete, the first token is one of the thumbnail's (the base crop, which shows the
    whole image); the others may be anywhere.

    Knobs:
    - layer: the encoder layer whose attention is read (index, or relative depth as a float); the paper's is the last.
    - objective: "sum" adds the token with the smallest sum of cosine similarities to those already chosen
      (version 2 of the paper), "max" the one whose largest similarity to them is smallest (the k-center of version 1's
      wording; DivPrune's rule from another first token).

    Paper: ToDRE, arXiv 2505.18757 v2. No official code was found; written and checked from the equations.
    Departures: attention is averaged over heads (the formula has one head over all channels). Without [CLS] (SigLIP,
    Qwen) the query is the mean of all queries of the image, where the paper takes a random first token. Kept tokens
    stay in their original order, which the paper does not specify. Float32, ties to the lower index.
    """

    layer: int | float = -1
    objective: Literal["sum", "max"] = "sum"

    needs_cls = True

    def needs(self, encoder: Encoder) -> tuple[ClsAttention, Features]:
        """[CLS] attention of one layer, and the projected features."""
        return ClsAttention(encoder.layer(self.layer, "layer")), Features()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `selection_order`."""
        attention, features = (context[signal] for signal in self.needs(encoder))
        # Without a grid several tiles compete, and the thumbnail's tokens come first.
        candidates = encoder.thumbnail if context.grid is None else None
        order = selection_order(attention, features, context.count, self.objective, candidates)
        return Selection(order.sort(dim=1).values)
