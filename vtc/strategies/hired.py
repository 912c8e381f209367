"""HiRED: an early layer's [CLS] attention divides the budget among the tiles, a deep layer's selects in each."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Selection
from vtc.core.signals import ClsAttention, Context, Encoder, Extent
from vtc.kernels.topk import topk_sorted
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


def region_of(tiles: tuple[Extent, ...], region: str) -> Tensor:
    """The tile (after the first) that each token of the first tile belongs to: LongTensor [tokens of the first].

    "strips": equal runs of its tokens; "spatial": by the tile's position on the image; raises ConfigError if that is
    unknown.
    """
    base, *parts = tiles
    every = torch.arange(base.tokens)
    if region == "strips":
        return every * len(parts) // base.tokens
    if any(tile.top is None for tile in parts):
        raise ConfigError(
            "region='spatial' needs to know how the tiles of an image are arranged, which this model's prompts do not "
            "tell; possible: strips"
        )
    high, wide = max(t.top + t.rows for t in parts), max(t.left + t.columns for t in parts)
    y = (every // base.columns * 2 + 1) * high // (2 * base.rows)
    x = (every % base.columns * 2 + 1) * wide // (2 * base.columns)
    region_index = torch.zeros_like(every)
    for i, t in enumerate(parts):
        region_index[(y >= t.top) & (y < t.top + t.rows) & (x >= t.left) & (x < t.left + t.columns)] = i
    return region_index


def tile_budgets(weight: Tensor, tiles: tuple[Extent, ...], count: int, region: str) -> Tensor:
    """How many of `count` tokens each tile after the first keeps: LongTensor [B, tiles - 1].

    weight [B, tokens of the first tile]: of its tokens; a tile gets the share of its region, rounded down, at most all
    of its tokens. If all weights are zero, the shares are equal.
    """
    parts = len(tiles) - 1
    owner = upload(region_of(tiles, region), weight.device)
    in_region = owner == torch.arange(parts, device=weight.device).unsqueeze(1)
    total = (weight.float().unsqueeze(1) * in_region).sum(2)
    total_weight = total.sum(1, keepdim=True)
    share = torch.where(total_weight > 0, total / total_weight, 1 / parts)
    sizes = upload(torch.tensor([t.tokens for t in tiles[1:]]), weight.device)
    return (share * count).long().minimum(sizes)


@METHODS.register("hired")
@dataclass(frozen=True)
class HiRED(Stage):
    """Keeps the tokens that [CLS] attends to most in a deep layer; an early layer sets how many of each tile.

    Of several tiles the first, which shows the whole image, keeps int(count * alpha). The others divide the rest in
    proportion to an early layer's [CLS] attention in their regions of the first tile, each rounded down. An image of
    one tile keeps its top `count`.

    Knobs:
    - alpha: share of the budget for the tile that shows the whole image.
    - l_init: the early encoder layer (index, or relative depth as a float).
    - l_final: the deep encoder layer (index, or relative depth as a float); the penultimate one is published.
    - score: how a tile's region is weighted: "count", its tokens among the int(N * (1 - alpha)) of the first tile with
      most attention (code), or "attention", the sum over all of its tokens (paper).
    - region: a tile's part of the first tile: "strips", the i-th run of N / tiles tokens of the raster, which for 2 x 2
      tiles are four horizontal strips (code), or "spatial", the tile's own area (paper).
    - remainder: the tokens lost by rounding: "lost" (paper and code), or "best": the best tokens not yet kept are
      added, so that exactly `count` are kept.

    Paper: HiRED, AAAI 2025, arXiv 2408.10945. Official code: hasanar1f/HiRED @ 502d6dd (MIT), LLaVA-1.5 and LLaVA-NeXT.
    This follows the code; the paper's Algorithm 1 is score="attention" with region="spatial".
    Departures: LLaVA-NeXT's padding is removed first, so that it takes no part of the budget (the code selects it and
    drops it afterwards; if tiles are not square it cuts at the wrong place). Each image of a batch has its own
    selection (the code gives LLaVA-1.5's first to all). Without [CLS] (SigLIP, Qwen), where nothing is published, the
    query is the mean of all queries of the image. Scores in float32, ties to the lower index.
    """

    alpha: float = 0.5
    l_init: int | float = 0
    l_final: int | float = -2
    score: Literal["count", "attention"] = "count"
    region: Literal["strips", "spatial"] = "strips"
    remainder: Literal["lost", "best"] = "lost"

    needs_cls = True
    fixed_count = {"remainder": "best"}

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha={shown(self.alpha)} is out of range; possible: 0 to 1")

    def needs(self, encoder: Encoder) -> tuple[ClsAttention, ...]:
        """[CLS] attention of the deep layer and, if an image may be several tiles, of the early one."""
        deep = ClsAttention(encoder.layer(self.l_final, "l_final"))
        early = ClsAttention(encoder.layer(self.l_init, "l_init"))
        return (deep, early) if encoder.tiled and early != deep else (deep,)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `tile_budgets`."""
        needed = self.needs(encoder)
        deep, tiles, count = context[needed[0]].float(), context.tiles, context.count
        if len(tiles) < 2 or count == context.tokens:
            return Selection(topk_sorted(deep, count))
        base = tiles[0].tokens
        base_count = min(int(count * self.alpha), base)
        weight = context[needed[-1]][:, :base]
        if self.score == "count":
            hot = topk_sorted(weight, int(base * (1 - self.alpha)))
            weight = torch.zeros_like(weight, dtype=torch.float32).scatter_(1, hot, 1)
        budgets = tile_budgets(weight, tiles, min(count - base_count, context.tokens - base), self.region)
        budgets = torch.cat([torch.full_like(budgets[:, :1], base_count), budgets], 1)
        parts = zip(deep.split([t.tokens for t in tiles], 1), budgets.unbind(1), strict=True)
        chosen = torch.cat([_rank(part) < budget.unsqueeze(1) for part, budget in parts], 1)
        if self.remainder == "best":
            return Selection(topk_sorted(deep.masked_fill(chosen, torch.inf), count))
        return Selection.marked(chosen, count)


def _rank(score: Tensor) -> Tensor:
    """The rank of each of score [B, n] in descending order, ties to the lower index."""
    order = score.sort(dim=1, descending=True, stable=True).indices
    return order.argsort(1)
