"""VScan, first stage: the best of each window by a shallow layer, the best by a deep one; the rest is averaged in."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vtc.core.errors import ConfigError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, Features, Signal
from vtc.kernels.products import product, unit_vectors
from vtc.kernels.topk import topk_sorted
from vtc.kernels.transfer import upload
from vtc.strategies import METHODS
from vtc.strategies.base import Stage


def windows(grid: tuple[int, int], size: int) -> Tensor:
    """The window [N] of each token of a raster; a remainder belongs to the last window of its row or column."""
    size = min(size, max(grid))
    rows, columns = (torch.arange(n) // size for n in grid)
    down, right = (max(1, n // size) for n in grid)
    return (rows.clamp(max=down - 1)[:, None] * right + columns.clamp(max=right - 1)).flatten()


def local_picks(attention: Tensor, window: Tensor, count: int, rule: str) -> Tensor:
    """The locally selected tokens [B, N] bool: with rule "each" the best count // W of each of W windows; with "capped"
    the best `count` of all, at most ceil(count / W) per window."""
    sizes = torch.bincount(window)
    number, window = len(sizes), upload(window, attention.device)
    order = attention.sort(dim=1, descending=True, stable=True).indices
    inside = window[order].sort(dim=1, stable=True)
    first = upload(sizes.cumsum(0) - sizes, attention.device)[inside.values]
    place = torch.arange(len(window), device=order.device) - first
    rank = torch.empty_like(order).scatter_(1, order.gather(1, inside.indices), place)
    if rule == "each":
        return rank < count // number
    allowed = (rank < -(-count // number)).gather(1, order)
    return torch.zeros_like(allowed).scatter_(1, order, allowed & (allowed.cumsum(1) <= count))


def averaged(features: Tensor, keep: Tensor) -> Merge:
    """Each token [B, N, D] that is not kept is merged into the kept one [B, K] with the highest cosine, ties to the
    first; a kept token becomes the mean of itself and those."""
    targets = []
    for unit, kept in zip(features, keep, strict=True):
        unit = unit_vectors(unit.clone())
        slots = torch.arange(len(kept), device=kept.device)
        targets.append(product(unit, unit[kept].T).argmax(1).scatter(0, kept, slots))
    target = torch.stack(targets)
    sizes = torch.zeros(keep.shape, device=keep.device).scatter_add_(
        1, target, torch.ones(target.shape, device=keep.device)
    )
    return Merge(target, sizes.reciprocal().gather(1, target))


@METHODS.register("vscan_projector")
@dataclass(frozen=True)
class VScanProjector(Stage):
    """Keeps tokens by the [CLS] attention of two encoder layers, and averages the others into them after the projector.

    Half of the tokens are local: the best of each window of the raster by a shallow layer. The others are global: the
    best of the remaining ones by a deep layer. Each dropped token is merged into the kept one with the most similar
    projected features, and a kept token becomes the mean of itself and its merged tokens.

    Knobs:
    - shallow_layer: encoder layer of the local tokens (index, or relative depth as a float); the 6th of 24 is
      published.
    - deep_layer: encoder layer of the global tokens (index, or relative depth as a float); the penultimate one is
      published.
    - window: side of a window in tokens.
    - local: "each": every window gives the same number; "capped": the best of all, at most its rounded-up share per
      window.
    - remainder: the tokens that "each" cannot divide evenly: "global" adds it to the global tokens; "released" keeps
      that many fewer.

    Paper: VScan, TMLR 2026, arXiv 2505.22654. Official code: Tencent/SelfEvolvingAgent @ a82450e, folder VScan (MIT),
    LLaVA-1.5, LLaVA-NeXT and Qwen2.5-VL ("capped", windows of 4 merged tokens). `vscan` comes after it.
    Departures: remainder="global" is the default, so that the budget is met (the code: 36 of 40). If a raster is not
    made of whole windows (SigLIP), the last ones are larger. Which layers the code uses on Qwen is unknown to us; here
    it is a windowed one at about a fifth of the depth and the last, which spans the image; without [CLS] the attention
    is the mean received. LLaVA-NeXT tile by tile as published, but after the model's own unpadding. Float32, ties to
    the lower index.
    """

    shallow_layer: int | float = 0.25
    deep_layer: int | float = -2
    window: int = 6
    local: Literal["each", "capped"] = "each"
    remainder: Literal["global", "released"] = "global"

    grid = True
    needs_cls = True
    tile_scope = "per_tile"
    fixed_count = {"remainder": "global"}

    def __post_init__(self):
        if self.window < 1:
            raise ConfigError(f"window={self.window} is out of range; possible: at least 1")

    def needs(self, encoder: Encoder) -> tuple[Signal, ...]:
        """Both layers' attention, and the features to average."""
        layers = encoder.layer(self.shallow_layer, "shallow_layer"), encoder.layer(self.deep_layer, "deep_layer")
        attention = (ClsAttention(n) if encoder.has_cls else AttentionColumns(n, "mean") for n in layers)
        return (*attention, Features())

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """See `local_picks` and `averaged`."""
        shallow, deep, features = (context[signal] for signal in self.needs(encoder))
        window = windows((context.tokens // context.columns, context.columns), self.window)
        half, count = context.count // 2, context.count
        picked = local_picks(shallow, window, half, self.local)
        if self.remainder == "released" and count < context.tokens:
            sizes = torch.bincount(window)
            local_count = int(sizes.clamp(max=half // len(sizes)).sum()) if self.local == "each" else half
            count = max(1, local_count + count - half)
        keep = topk_sorted(deep.masked_fill(picked, torch.inf), count).to(features.device)
        return Selection(keep, merge=averaged(features, keep))
