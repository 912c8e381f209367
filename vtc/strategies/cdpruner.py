"""CDPruner: diverse tokens that are relevant to the question, selected by a determinantal point process."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features, Signal, TextEmbeddings, TextRelevance
from vtc.kernels.anchor import cosines
from vtc.kernels.dpp import dpp_greedy
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

EPS = 1e-6


def quality(relevance: Tensor, joint: bool = False) -> Tensor:
    """Relevance [B, N] as weights q [B, N] of about 0 to 1: (r - min + 1e-6) / (max - min), minimum and maximum over
    each unit, or over all B together (`joint`). A range below 1e-6 counts as 1e-6, so constant relevance gives q = 1;
    scaling q by a constant does not change the picks. float32, or float64 if relevance is."""
    relevance = relevance.to(torch.promote_types(relevance.dtype, torch.float32))
    rows = relevance.reshape(1, -1) if joint else relevance
    low, high = rows.aminmax(dim=1, keepdim=True)
    return (relevance - low + EPS) / (high - low).clamp_min(EPS)


def cosine_with_words(features: Tensor, words: Tensor) -> Tensor:
    """Cosine [B, N] of the tokens [B, N, D] with the mean of the words [B, m, D]; 0 without words."""
    words = words.to(features.device, torch.promote_types(words.dtype, torch.float32))
    return cosines(features, words.sum(1, keepdim=True))[:, 0]


@METHODS.register("cdpruner")
@dataclass(frozen=True)
class CDPruner(Stage):
    """Keeps the tokens of a greedy MAP solution of a determinantal point process, see `vtc.kernels.dpp`.

    Its kernel is q_i L_ij q_j: L the cosine of the projected tokens i and j, q the relevance of a token to the
    question, see `quality`.

    Knobs:
    - relevance: how a token's relevance is measured. "embeddings": cosine of the projected token with the mean of the
      question's input embeddings, the paper's rule for encoders without a text tower; "clip": cosine of token and
      question in CLIP's common space, mean over the segments of the question, needs the CLIP model of the vision
      tower; "none": q = 1, the question is not used.
    - sign: of the cosine in "clip". "released" uses minus the cosine as the code does, since the cosines of CLIP's
      patches are known to be inverted; "paper" uses the cosine. "embeddings" always uses the cosine: no code is
      released for it, the paper's formula has no minus, and no inversion is known.

    Paper: CDPruner, NeurIPS 2025, arXiv 2506.10967. Official code: Theia-4869/CDPruner @ 9541616c (Apache-2.0 by its
    README), LLaVA with "clip".
    Departures: "embeddings" is the default everywhere, so that no second model is needed; relevance="clip" on LLaVA is
    the published setting. Relevance is scaled by each tile's own minimum and maximum: the code takes them over all
    crops in the batch, so that an image's tokens depend on its neighbours (`quality` has that form too). The selection
    is also defined if more tokens are kept than the features have dimensions (the code: NaN), and if relevance is
    constant (the code: infinity). Cosines in float32 (the code normalises in half precision), ties to the lower index.
    A budget that keeps every token changes nothing.
    """

    relevance: Literal["clip", "embeddings", "none"] = "embeddings"
    sign: Literal["released", "paper"] = "released"

    tile_scope = "per_tile"

    @property
    def needs_text(self) -> bool:
        """Only "clip" reads the question as text; for "embeddings" the prompt's ids are enough."""
        return self.relevance == "clip"

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """The projected tokens, and the signals for the relevance."""
        text = {"clip": (TextRelevance(),), "embeddings": (TextEmbeddings(),), "none": ()}
        return Features(), *text[self.relevance]

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """The first `count` picks."""
        features, *text = (context[signal] for signal in self.needs(encoder))
        if self.relevance == "clip":
            relevance = text[0].to(features.device) * (-1 if self.sign == "released" else 1)
        elif self.relevance == "embeddings":
            relevance = cosine_with_words(features, text[0])
        else:
            relevance = torch.zeros(features.shape[:2], device=features.device)
        return Selection(dpp_greedy(features, quality(relevance), context.count).sort(dim=1).values)
