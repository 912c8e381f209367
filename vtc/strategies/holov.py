"""HoloV: a budget for each crop of the token sequence, by attention and the variance of similarity within it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, Features, Signal
from vtc.kernels.groups import fill, take
from vtc.kernels.products import product
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

EPS, SCALE = 1e-6, 1000.0
WHOLE = 1024 / 576  # default number of crops: this times tokens / budget; 16 for 64 of 576


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
    """Keeps the tokens that [CLS] attends to most in each of several crops of the token sequence.

    The tokens, row by row, are divided into crops of equal length (the first ones are one longer if there is a
    remainder). A token's score is its attention plus the variance of its cosines to the others in its crop, scaled to
    the attention's mean; each crop gets a quota in proportion to its mean score and keeps the tokens with the most
    attention. (As both terms have the same mean, the variance hardly changes the quotas, in paper and code alike.)

    Knobs:
    - crops: number of crops; null: max(1, int(1024 / 576 * tokens / count)), 16 for 64 of 576.
    - alpha: weight of the variance.
    - surplus: the part of a quota beyond the size of a crop: "redistribute" gives it to the best crops with tokens
      left, one after the other; "released" keeps that many fewer.
    - layer: the encoder layer whose attention is read (index, or relative depth as a float).

    Paper: HoloV, NeurIPS 2025, arXiv 2510.02912. Official code: obananas/HoloV @ 1d2e65e (Apache-2.0), LLaVA-1.5,
    LLaVA-NeXT (base crop and tiles in one sequence, as here) and Qwen2.5-VL.
    Departures: the code fills the surplus with zero vectors, which the language model then reads; here "released" omits
    them. Kept tokens are in raster order (the code: crop by crop, by attention). Without [CLS] the attention is the
    mean received from all patches; which attention the code uses on Qwen is unknown to us.
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
        """The attention, and the features to compare."""
        layer = encoder.layer(self.layer, "layer")
        return ClsAttention(layer) if encoder.has_cls else AttentionColumns(layer, "mean"), Features()

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """Selects unit by unit: `count` tokens, or with surplus="released" at most that many."""
        attention, features = (context[signal] for signal in self.needs(encoder))
        attention = attention.to(features.device, torch.promote_types(attention.dtype, torch.float32))
        units = [self._unit(x, a, context.count) for x, a in zip(features, attention, strict=True)]
        keep, counts = (torch.stack(x) for x in zip(*units, strict=True))
        if self.surplus == "redistribute":
            return Selection(keep.sort(1).values)
        keep, order = keep.masked_fill(~counts, context.tokens).sort(1)
        return Selection(keep.clamp(max=context.tokens - 1), valid=counts.gather(1, order))

    def _unit(self, features: Tensor, attention: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The picks [count] of one unit, and which of them are valid."""
        scores, sizes = self.scores(features, attention, count)
        allocated = allocation(scores, count)
        quota = torch.minimum(allocated, sizes)
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
