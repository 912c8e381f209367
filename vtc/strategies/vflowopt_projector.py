"""VFlowOpt, first stage: keeps tokens that important patches attend to; the others merge within grid cells."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError, shown
from vtc.core.selection import Merge, Selection
from vtc.core.signals import Context, Encoder, Extent, ImportantAttention, PatchEntropy, Signal
from vtc.kernels.topk import topk_sorted
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


@lru_cache(maxsize=256)
def cells_of(tiles: tuple[Extent, ...], a: float) -> Tensor:
    """The square cell of side a that each token lies in, numbered from 0: LongTensor [N]. The first of several tiles
    has its own cells; the others form one grid, or each has its own cells if their arrangement is unknown."""
    numbers: dict[tuple, int] = {}
    apart = any(tile.top is None for tile in tiles)
    places = [
        (i if apart else min(i, 1), int(((tile.top or 0) + row) / a), int(((tile.left or 0) + column) / a))
        for i, tile in enumerate(tiles)
        for row in range(tile.rows)
        for column in range(tile.columns)
    ]
    return torch.tensor([numbers.setdefault(place, len(numbers)) for place in places])


@torch.no_grad()
def recycle(importance: Tensor, cells: Tensor, number: int) -> Selection:
    """Merges the `number` least important tokens of importance [B, N] within their cells [N]; keeps the others.

    A cell's tokens become one, weighted by their importance, in the place of the most important of them, whose score
    it keeps. So a unit keeps N - number tokens and one for each cell that loses any (`valid`). cells are on the host.
    """
    units, tokens = importance.shape
    many = int(cells.max()) + 1
    cells = upload(cells, importance.device).expand(units, -1)
    goes = torch.ones_like(importance, dtype=torch.bool).scatter_(1, topk_sorted(importance, tokens - number), False)
    cells = cells.masked_fill(~goes, many)  # kept tokens are in no cell
    order = importance.sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, cells.gather(1, order).sort(dim=1, stable=True).indices)
    grouped = cells.gather(1, order)
    leads = torch.ones_like(goes)
    leads[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    leads &= grouped < many
    kept = ~goes | torch.zeros_like(goes).scatter_(1, order, leads)
    slot = kept.long().cumsum(1) - 1

    lead = order.new_zeros(units, many + 1)
    lead.scatter_(1, torch.where(leads, grouped, many), order)
    into = torch.where(goes, slot.gather(1, lead.gather(1, cells)), slot)
    total = importance.new_zeros(units, many + 1).scatter_add_(1, cells, importance)
    sizes = importance.new_zeros(units, many + 1).scatter_add_(1, cells, torch.ones_like(importance))
    total, sizes = total.gather(1, cells), sizes.gather(1, cells)
    weight = torch.where(goes, torch.where(total == 0, 1 / sizes, importance / total), 1)
    selection = Selection.marked(kept, min(tokens, tokens - number + many))
    return Selection(selection.keep, selection.valid, Merge(into, weight), score=importance.gather(1, selection.keep))


@METHODS.register("vflowopt_projector")
@dataclass(frozen=True)
class VFlowOptProjector(Stage):
    """Keeps the most important tokens and merges the others in square cells of the grid (recycling).

    A token's importance is the attention it receives from important patches (those that receive more than t times the
    mean attention of their crop, see `ImportantAttention`), plus alpha times the entropy of its grey values (a softmax
    over the crop). The N - count least important tokens and int(N / a^2) more are recycled: those of a cell become one
    token, their importance-weighted mean, in the place of the most important. The number kept therefore depends on the
    image, and may be slightly above or below the count. The stage `vflowopt` ranks by the same importance inside the
    language model.

    Knobs:
    - t: multiple of the mean attention that an important patch receives.
    - alpha: weight of the entropy; 0 in all published settings.
    - a: side of a cell in tokens.
    - released: how pixels are converted to grey values, see `vtc.kernels.entropy`.
    - layer: the encoder layer (index, or relative depth as a float); best the one whose output the projector receives.
    - surplus: how many tokens are recycled in addition to those over budget: "released", int(N / a^2); "cells",
      one for each cell, so that never more than the count are kept; nothing is merged if there are as many cells.

    t, alpha and a were found together with the budgets by a search, for 27 x 27 tokens; the defaults are those of 25 %.
    For 50 %: t 28.68, a 11.76, keep 0.72332 and the later ratios 0.74875 and 0.487; for 10 %: t 39.26, a 17.39, keep
    0.11662 and 1.0 and 0.6011.

    Paper: VFlowOpt, ICCV 2025, arXiv 2508.05211. Official code: sihany077/VFlowOpt (CC BY-NC 4.0), LLaVA-OneVision
    only; nothing is released for LLaVA-NeXT and Qwen2-VL, which the paper has too. The attention of important patches
    is averaged as in the code (the paper sums, which matters for alpha and between crops).
    Departures: if no patch is above t, the one that receives most is important (the code: NaN). A [CLS] token counts as
    a patch here, and newline tokens are dropped (the code gives them importance 1). LLaVA-NeXT's padding is removed
    first. Batches, several images (which the code does not prune) and LLaVA-1.5 are ours. Float32, ties to the lower
    index.
    """

    t: float = 34.759552803070484
    alpha: float = 0.0
    a: float = 15.580797034937687
    released: bool = True
    layer: int | float = -2
    surplus: Literal["released", "cells"] = "released"

    adaptive = True
    fixed_count = {"surplus": "cells"}  # never above it
    gives_score = True

    def __post_init__(self):
        if not 0 <= self.t < float("inf"):
            raise ConfigError(f"t={shown(self.t)} is out of range; possible: a number from 0")
        if not 1 <= self.a <= 1e6:
            raise ConfigError(f"a={shown(self.a)} is out of range; possible: a side of 1 to 1e6 tokens")
        if not abs(self.alpha) <= 1e30:  # sums stay finite in float32
            raise ConfigError(f"alpha={shown(self.alpha)} is out of range; possible: -1e30 to 1e30")

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """Attention, and entropy if its weight is not 0."""
        attention = ImportantAttention(encoder.layer(self.layer, "layer"), self.t)
        return (attention, PatchEntropy(self.released)) if self.alpha else (attention,)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `recycle`; about `count`."""
        attention, *entropy = (context[signal] for signal in self.needs(encoder))
        importance = attention.to(torch.promote_types(attention.dtype, torch.float32))
        if entropy:
            importance = importance + self.alpha * entropy[0].to(importance)
        tokens, count = context.tokens, context.count
        if count == tokens:
            every = torch.arange(tokens, device=importance.device).expand(len(importance), -1).contiguous()
            return Selection(every, score=importance)
        tiles = context.tiles if context.grid is None else (Extent(*context.grid, 0, 0),)
        cells = cells_of(tiles, self.a)
        surplus = int(tokens / self.a**2) if self.surplus == "released" else int(cells.max()) + 1
        if self.surplus == "cells" and surplus >= count:
            keep = topk_sorted(importance, count)
            return Selection(keep, score=importance.gather(1, keep))
        return recycle(importance, cells, min(tokens, tokens - count + surplus))
