"""MMR: tokens that are important and dissimilar to those already chosen, by maximal marginal relevance."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, Features, Signal
from vtc.kernels.cosine import Cosines
from vtc.kernels.diversity.reference import by_part
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

EPS = 1e-6


@torch.no_grad()
def picks(importance: Tensor, features: Tensor, count: int, lam: float, picks_per_step: int = 1) -> Tensor:
    """The `count` picks in order of selection: LongTensor [B, count]; within one step, the best first.

    importance [B, N] is scaled to 0..1 over each unit; features [B, N, D] are compared by cosine.
    """
    score = importance.to(features.device, torch.promote_types(importance.dtype, torch.float32))
    low, high = score.aminmax(dim=1, keepdim=True)
    score = (score - low) / (high - low + EPS)
    if lam == 1:
        return _descending(score)[:, :count]

    def choose(part: slice) -> Tensor:
        cosines, relevance = Cosines(features[part]), score[part]
        near = torch.full(relevance.shape, -torch.inf, dtype=cosines.dtype, device=relevance.device)
        worth, chosen, rounds = relevance, torch.zeros_like(relevance, dtype=torch.bool), []
        for picked in range(0, count, picks_per_step):
            pick = _descending(worth.masked_fill(chosen, -torch.inf))[:, : min(picks_per_step, count - picked)]
            rounds.append(pick)
            chosen = chosen.scatter(1, pick, True)
            for index in pick.unbind(1):
                near = near.maximum(cosines.rows(index))
            worth = lam * relevance - (1 - lam) * near
        return torch.cat(rounds, 1)

    return by_part(choose, features, count)


def _descending(score: Tensor) -> Tensor:
    return score.sort(dim=1, descending=True, stable=True).indices


@METHODS.register("mmr")
@dataclass(frozen=True)
class MMR(Stage):
    """Keeps tokens by maximal marginal relevance: important ones that are dissimilar to those chosen before.

    The first is the most important. Each further one has the largest lam * importance - (1 - lam) * nearest, where
    importance is scaled to 0..1 over the image and nearest is its largest cosine to a chosen projected token.

    Knobs:
    - lam: weight of importance, the paper's lambda: 1 keeps the most important tokens; with 0, importance only selects
      the first and similarity the others.
    - picks_per_step: tokens selected in one step.
    - importance: "cls": attention of [CLS] (without one, of the mean of all queries of the image); "received": mean
      attention received.
    - layer: the encoder layer whose attention gives the importance (index, or relative depth as a float).

    Paper: IDPruner, arXiv 2602.13315, of which this is the training-free part: the paper's importance comes from a
    trained selector, which vtc does not have, so its results are not those of this method. Code read: idpruner.py of
    Tencent's AngelSlim at 67394ce (stated to be Apache-2.0 with exceptions; the copy we read had no licence text).
    Departures: the importance, as above; each image on its own (the code pools all images of a sample). Float32, ties
    to the lower index.
    """

    lam: float = 0.5
    picks_per_step: int = 1
    importance: Literal["cls", "received"] = "cls"
    layer: int | float = -2

    needs_cls = True

    def __post_init__(self):
        if not 0 <= self.lam <= 1:
            raise ConfigError(f"lam={shown(self.lam)} is out of range; possible: 0 to 1")
        if self.picks_per_step < 1:
            raise ConfigError(f"picks_per_step={shown(self.picks_per_step)} takes nothing; possible: 1 or more")

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """Importance, and the projected tokens."""
        layer = encoder.layer(self.layer, "layer")
        score = ClsAttention(layer) if self.importance == "cls" else AttentionColumns(layer, "mean")
        return score, Features()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `picks`."""
        score, features = (context[signal] for signal in self.needs(encoder))
        order = picks(score, features, context.count, self.lam, self.picks_per_step)
        return Selection(order.sort(dim=1).values)
