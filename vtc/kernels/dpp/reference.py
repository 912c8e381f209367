"""Greedy DPP choice in plain torch, by a Cholesky factor that grows by one row per pick."""

from collections.abc import Callable

import torch
from torch import Tensor

import vtc.kernels.dpp.leaders as leaders
from vtc.kernels.cosine import Cosines, features_of, units_at_once
from vtc.kernels.products import float_type, product

# Times the machine epsilon: a squared sine below this is rounding. Measured in float32: 13 epsilons after 200 picks,
# one of each of 200 tokens that come several times, in 4096 dimensions; 35 once all of 256 dimensions are used up.
DEPENDENT = 64


@torch.no_grad()
def dpp_greedy(features: Tensor | Cosines, quality: Tensor, k: int) -> Tensor:
    """Picks the token that multiplies the determinant of the chosen part of K most, again and again.

    K = diag(q) L diag(q), L the cosines of the features. d_j = det K[S + j] / det K[S] starts at K_jj and is updated
    after each pick from one row of the Cholesky factor of K[S], so k picks cost O(N k^2) beside the cosines; K is
    never formed. Ties go to the lower index.

    A token whose d_j has fallen to rounding, at most 64 machine epsilons of K_jj, lies in the span of the picks: its
    d_j counts as 0. When all do (k above the rank, as with fewer dimensions than picks, or duplicates), the rest of
    the picks are the lowest indices that are left.

    Args:
        features: [B, N, D], or their `Cosines`.
        quality: [B, N], q >= 0.
        k: how many to pick, 0..N.

    Returns:
        LongTensor [B, k], in the order of the picks, without duplicates. Computed in float32 (float64 if an input is).
        Extra memory: the cosines (see `vtc.kernels.cosine.Cosines`) and [k, N] per unit; on a CPU of the tokens that
        could be picks alone (see `vtc.kernels.dpp.leaders`).

    Raises:
        ValueError: a shape, a dtype or k that doesn't fit.

    Source: Chen, Zhang and Zhou, arXiv 1709.05135, algorithm 1, as used by CDPruner (arXiv 2506.10967), whose code
    divides by the square root of d_j even when that is 0 or negative.
    """
    check(features, quality, k)
    dtype = float_type(features_of(features), quality)
    if isinstance(features, Cosines):
        return choose(features, quality.to(dtype), k)
    units = features.shape[0]
    order = torch.empty(units, k, dtype=torch.long, device=features.device)
    # Batched products round differently from single ones on a CPU, and a unit must not depend on its neighbours.
    cpu = features.device.type == "cpu"
    size = 1 if cpu else units_at_once(features)
    for b in range(0, units if k else 0, size):
        part = slice(b, b + size)
        q = quality[part].to(dtype)
        picks = leaders.choose(features[b], q[0], k, DEPENDENT * torch.finfo(dtype).eps) if cpu else None
        order[part] = choose(Cosines(features[part].to(dtype)), q, k) if picks is None else picks
    return order


def check(features: Tensor | Cosines, quality: Tensor, k: int) -> None:
    """Raises ValueError for arguments that don't fit."""
    x = features_of(features)
    if x.ndim != 3 or not x.is_floating_point():
        raise ValueError(f"features are {x.dtype} {list(x.shape)}; possible: floats [B, N, D]")
    units, n, _ = x.shape
    if tuple(quality.shape) != (units, n) or not quality.is_floating_point():
        raise ValueError(f"quality is {quality.dtype} {list(quality.shape)}; possible: floats [{units}, {n}]")
    if not 0 <= k <= n:
        raise ValueError(f"k={k} for {n} tokens; possible: 0 to {n}")


def choose(cosines: Cosines, quality: Tensor, k: int) -> Tensor:
    """Picks [B, k] of units that are computed together; quality [B, N]."""
    unit = torch.arange(len(quality), device=quality.device)

    def row(pick: Tensor) -> Tensor:
        return cosines.rows(pick) * quality * quality[unit, pick][:, None]

    return greedy(quality.square() * own(cosines), row, k)


def own(cosines: Cosines) -> Tensor:
    """Cosines of tokens with themselves, [B, N]: 1, and 0 of a zero vector."""
    if cosines.matrix is None:
        return (cosines.x != 0).any(-1).to(cosines.dtype)
    return (cosines.matrix.diagonal(dim1=1, dim2=2) > 0).to(cosines.dtype)


def greedy(diagonal: Tensor, row_of: Callable[[Tensor], Tensor], k: int) -> Tensor:
    """Picks [B, k] for kernels K given by their diagonal [B, N] and, when asked for, a row of each unit: tokens [B] ->
    a new tensor [B, N]."""
    units, n = diagonal.shape
    unit = torch.arange(units, device=diagonal.device)
    residual = diagonal.clone()
    floor = residual * (DEPENDENT * torch.finfo(residual.dtype).eps)
    factor = diagonal.new_empty(units, k, n)
    order = torch.empty(units, k, dtype=torch.long, device=diagonal.device)
    chosen = torch.zeros(units, n, dtype=torch.bool, device=diagonal.device)
    for i in range(k):
        gain = residual.masked_fill(residual <= floor, 0).masked_fill_(chosen, -1)
        pick = gain.argmax(1)
        order[:, i] = pick
        chosen[unit, pick] = True
        if i + 1 == k:
            break
        row = row_of(pick)
        if i:
            row -= product(factor[unit, :i, pick][:, None], factor[:, :i])[:, 0]
        best = gain[unit, pick][:, None]
        factor[:, i] = torch.where(best > 0, row / best.sqrt(), 0)
        residual -= factor[:, i].square()
    return order
