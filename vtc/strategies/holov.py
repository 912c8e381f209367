"""HoloV: a budget for each stretch of the picture, by attention and the spread of similarity in it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, Features, Signal
from vtc.kernels.gram.reference import product
from vtc.kernels.groups import fill, take
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

EPS, SCALE = 1e-6, 1000.0
WHOLE = 1024 / 576  # crops where none are given: this times the tokens over the budget; 16 for 64 of 576


def crop_scores(features: Tensor, attention: Tensor, alpha: float) -> Tensor:
    """Mean score [P] of P crops of z tokens: features [P, z, D], attention [P, z]."""
    crops, size = attention.shape
    if size == 1:
        return attention[:, 0]
    unit = features / (features.norm(dim=2, keepdim=True) + EPS)
    cosine = torch.stack([product(u, u.T) for u in unit]).masked_fill(torch.eye(size, device=unit.device) > 0, 0)
    mean = cosine.sum(2, keepdim=True) / (size - 1)
    spread = (cosine - mean).square().sum(2) / (size - 1)
    scaled = SCALE * attention
    level = scaled.abs().mean(1, keepdim=True) / (spread.abs().mean(1, keepdim=True) + EPS)
    return (scaled + alpha * spread * level).mean(1)


def allocation(scores: Tensor, count: int) -> Tensor:
    """How many of `count` tokens each crop gets by its score [P], not yet capped by its size."""
    weight = scores / (scores.sum() + EPS)
    quota = (weight * count).floor().long()
    rank = scores.sort(descending=True, stable=True).indices.argsort()
    return quota + (rank < count - quota.sum())


@METHODS.register("holov")
@dataclass(frozen=True)
class HoloV(Stage):
    """Keeps the tokens that [CLS] attends to most in each of several stretches of the picture.

    The tokens, row by row, are cut into crops of equal length (the first ones one longer where that does not divide).
    A token's score is its attention plus the variance of its cosines to the others of its crop, scaled to the
    attention's mean; a crop gets tokens in proportion to its mean score, and gives those with the most attention. (As
    the two terms are brought to one mean, the variance hardly changes a crop's part; that is so in paper and code.)

    Knobs:
    - crops: how many; null: max(1, int(1024 / 576 * tokens / count)), 16 for 64 of 576.
    - alpha: weight of the variance.
    - surplus: what a crop cannot give because it has fewer tokens: "redistribute" lets the best crops that have more
      give it, one after the other; "released" keeps that many fewer.
    - layer: the encoder layer whose attention is read (index, or relative depth as a float).

    Paper: HoloV, NeurIPS 2025, arXiv 2510.02912. Official code: obananas/HoloV @ 1d2e65e (Apache-2.0), LLaVA-1.5,
    LLaVA-NeXT (base crop and tiles in one sequence, as here) and Qwen2.5-VL.
    Departures: the code fills the surplus with vectors of zeros, which the language model then reads; here they are
    left out at least. What is kept stands in the order of the picture (the code: crop by crop, by attention). Without
    [CLS] the attention is the mean received from all patches; where the code's Qwen takes it from is not known to us.
    Float32, ties to the lower index.
    """

    crops: int | None = 16
    alpha: float = 0.09
    surplus: Literal["redistribute", "released"] = "redistribute"
    layer: int | float = -2

    needs_cls = True
    fixed_count = {"surplus": "redistribute"}

    def __post_init__(self):
        if self.crops is not None and self.crops < 1:
            raise ConfigError(f"crops={self.crops} is out of range; possible: at least 1, or null")
        if self.alpha < 0:
            raise ConfigError(f"alpha={self.alpha} is out of range; possible: 0 or more")

    def needs(self, encoder: Encoder) -> tuple[Signal, Features]:
        """The attention, and what is compared."""
        layer = encoder.layer(self.layer, "layer")
        return ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer, "mean"), Features()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Unit by unit; `count`, or with surplus="released" at most that."""
        attention, features = (context[signal] for signal in self.needs(encoder))
        attention = attention.to(features.device, torch.promote_types(attention.dtype, torch.float32))
        units = [self._unit(x, a, context.count) for x, a in zip(features, attention, strict=True)]
        keep, counts = (torch.stack(x) for x in zip(*units, strict=True))
        if self.surplus == "redistribute":
            return Selection(keep.sort(1).values)
        keep, order = keep.masked_fill(~counts, context.tokens).sort(1)
        return Selection(keep.clamp(max=context.tokens - 1), valid=counts.gather(1, order))

    def _unit(self, features: Tensor, attention: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The picks [count] of one unit, and which of them count."""
        scores, sizes = self.scores(features, attention, count)
        wanted = allocation(scores, count)
        quota = torch.minimum(wanted, sizes)
        if self.surplus == "redistribute":
            quota = fill(quota, sizes, scores.sort(descending=True, stable=True).indices, count - quota.sum())
        group = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes, output_size=len(features))
        return take(attention.sort(descending=True, stable=True).indices, group, quota, count)

    def scores(self, features: Tensor, attention: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The scores [P] and the sizes [P] of the crops of one unit."""
        tokens = len(features)
        crops = max(1, int(WHOLE * tokens / count)) if self.crops is None else self.crops
        size, longer = divmod(tokens, min(crops, tokens))
        short, first = min(crops, tokens) - longer, longer * (size + 1)
        x = features.to(torch.promote_types(features.dtype, torch.float32)).clone()
        parts = [
            crop_scores(x[part].unflatten(0, (n, z)), attention[part].unflatten(0, (n, z)), self.alpha)
            for n, z, part in ((longer, size + 1, slice(0, first)), (short, size, slice(first, None)))
            if n
        ]
        sizes = torch.full((longer + short,), size, device=x.device)
        sizes[:longer] += 1
        return torch.cat(parts), sizes
