"""HiPrune: anchors and their neighbours from a middle encoder layer, registers from a deep one."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, Context, Encoder
from vtc.kernels.topk import topk_sorted
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


def anchor_count(count: int, alpha: float) -> int:
    """Anchors for a budget of `count` tokens: round(count * alpha / 5), halves to even."""
    return round(count * alpha / 5)


def select_tokens(
    object_score: Tensor,
    deep_score: Tensor,
    width: int,
    count: int,
    alpha: float,
    exclude: str = "exact",
    edges: str = "clamp",
) -> Selection:
    """Anchors, buffers and registers for B units of N tokens on a raster of `width` columns.

    object_score, deep_score [B, N]: attention received in the object and the deep layer. Returns `keep` [B, count];
    with exclude="official" a row may keep fewer (`valid` marks them). If anchors and buffers alone exceed `count`
    (alpha near 1, where the released code fails), the lowest indices among them are kept.
    """
    batch, tokens = object_score.shape
    anchors = anchor_count(count, alpha)
    near = topk_sorted(object_score, anchors)
    offsets = upload(torch.tensor([0, -1, 1, -width, width]), near.device)
    cross = near.unsqueeze(-1) + offsets
    if edges == "drop":
        cross = torch.where((cross >= 0) & (cross < tokens), cross, near.unsqueeze(-1))
    cross = cross.clamp(0, tokens - 1).flatten(1)
    chosen = torch.zeros(batch, tokens, dtype=torch.bool, device=object_score.device).scatter_(1, cross, True)
    if exclude == "exact":
        # Chosen tokens rank above all others, so the top `count` are these and the best of the rest.
        return Selection(topk_sorted(deep_score.float().masked_fill(chosen, torch.inf), count))
    registers = count - chosen.sum(1)
    order = (deep_score.float() - chosen.float()).sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(tokens, device=order.device).expand(batch, -1))
    kept = chosen | (rank < registers.unsqueeze(1))
    return Selection.marked(kept, count)


@METHODS.register("hiprune")
@dataclass(frozen=True)
class HiPrune(Stage):
    """Keeps the tokens most attended to in a middle layer (with their cross neighbours) and the best of a deep layer.

    Scores are the attention received, averaged over heads and over all queries ([CLS] included). Top
    round(count*alpha/5) tokens of the object layer are anchors; their 4 neighbours on the flat index (rows wrap,
    out-of-range clamps to the first or last token) are buffers; registers, by the deep layer's score, fill the rest.

    Knobs:
    - alpha: share of the budget for anchors and buffers.
    - object_layer: encoder layer that ranks the anchors (index, or relative depth as a float); the 9th of 24 is
      published.
    - deep_layer: encoder layer that ranks the registers (index, or relative depth as a float); the penultimate one is
      published.
    - query_reduction: "mean" or "sum" of the attention over queries (same ranking; matters for exclude="official").
    - exclude: "exact" excludes chosen tokens from the registers (the paper's eq. 7); "official" subtracts 1 from their
      score as the released code does: the same with mean-reduced scores, but with sum-reduced ones (Qwen) a token can
      be chosen twice and the budget stays under-filled.
    - edges: "clamp" as above, as in the code; "drop": neighbours before the first and after the last token are
      ignored, as in the paper's eq. 5 (rows wrap there, too).

    Paper: HiPrune, arXiv 2508.00553. Official code: Danielement321/HiPrune @ 6e83a12 (MIT). Departures from the paper
    that follow the code: neighbours out of range (edges="drop" is the paper's), registers from the penultimate layer
    (deep_layer=-1, the output layer, is the paper's).
    Departures: LLaVA-NeXT keeps the model's own unpadding, so padding never competes; every image has the full
    budget (the code divides it by the batch); several images and batches are selected one by one; scores are
    float32 with ties to the lower index (the code ranks fp16/bf16 scores, so +-1 token there). On SigLIP and Qwen2-VL,
    where nothing is published, layers are set by relative depth.
    """

    alpha: float = 0.1
    object_layer: int | float = 0.375
    deep_layer: int | float = -2
    query_reduction: Literal["mean", "sum"] = "mean"
    exclude: Literal["exact", "official"] = "exact"
    edges: Literal["clamp", "drop"] = "clamp"

    grid = True
    tile_scope = "per_tile"
    fixed_count = {"exclude": "exact"}

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha={self.alpha} is out of range; possible: 0 to 1")

    def needs(self, encoder: Encoder) -> tuple[AttentionColumns, AttentionColumns]:
        """Column means of the object and the deep layer."""
        layers = encoder.layer(self.object_layer, "object_layer"), encoder.layer(self.deep_layer, "deep_layer")
        return tuple(AttentionColumns(layer, self.query_reduction) for layer in layers)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `select_tokens`."""
        middle, deep = (context[signal] for signal in self.needs(encoder))
        return select_tokens(middle, deep, context.columns, context.count, self.alpha, self.exclude, self.edges)
