"""Greedy diversity in plain torch: the farthest token next, or the one with the smallest sum of cosines.

Both keep one number per token and update it from the similarities of the last pick, O(k N) in place of O(k^2 N) when it
is taken anew over all picks; the number is the same bit by bit, because a minimum does not round and a sum is taken in
the order of the picks. The similarities are `vtc.kernels.cosine.Cosines`: the whole matrix for units of up to 16384
tokens, computed once, and beyond that one matrix-vector product per pick. (2880 tokens of width 4096 on two CPU cores:
0.3 s for the matrix, which the first pick of `maxmin_greedy` needs anyway, against 0.7 s for 320 single rows.) A token
that is not finite counts as a zero vector.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vtc.kernels.cosine import Cosines, cosines_of, features_of, units_at_once


@torch.no_grad()
def maxmin_greedy(
    features: Tensor | Cosines, k: int, *, first: Tensor | None = None, excluded: Tensor | None = None
) -> Tensor:
    """Picks the token that is farthest from the picks so far, again and again (greedy max-min, k-center).

    The distance of two tokens is 1 - cosine; a token's distance from the picks is the smallest. Ties go to the lower
    index.

    Args:
        features: [B, N, D], or their `Cosines`.
        k: how many to pick, 0..N.
        first: LongTensor [B] of 0..N-1, the first pick of each unit. If None, the token whose nearest other token is
            farthest, by the second-smallest entry of its row of distances (the smallest is its own).
        excluded: bool [B, N], True for tokens that are not to be picked and count as nobody's neighbour. If k exceeds
            the others, they come last, in the order of their indices. It does not apply to `first`.

    Returns:
        LongTensor [B, k], in the order of the picks, without duplicates.

    Raises:
        ValueError: a shape, a dtype or k that doesn't fit.

    Source: DivPrune (arXiv 2503.02175), which recomputes the minimum over all picks in every step and has no guard
    against repeats; the picks are the same as long as distinct tokens are left.
    """
    check(features, k, first, excluded)

    def choose(part: slice) -> Tensor:
        cosines = cosines_of(features, part)
        hidden = None if excluded is None else excluded[part]
        lowest = torch.finfo(cosines.dtype).min
        if first is None:
            distance = 1 - cosines.second(hidden)
            pick = (distance if hidden is None else distance.masked_fill_(hidden, lowest)).argmax(1)
        else:
            pick = first[part]
        distance = torch.full(cosines.shape[:2], torch.inf, dtype=cosines.dtype, device=cosines.device)
        if hidden is not None:
            distance.masked_fill_(hidden, lowest)

        def step(pick: Tensor) -> Tensor:
            torch.minimum(distance, cosines.rows(pick).neg_().add_(1), out=distance)
            return distance.scatter_(1, pick.unsqueeze(1), -torch.inf).argmax(1)

        return _follow(pick, k, step)

    return by_part(choose, features, k)


@torch.no_grad()
def maxsum_greedy(features: Tensor | Cosines, first: Tensor, k: int) -> Tensor:
    """Picks the token whose cosines with the picks so far have the smallest sum, again and again.

    Ties go to the lower index.

    Args:
        features: [B, N, D], or their `Cosines`.
        first: LongTensor [B] of 0..N-1, the first pick of each unit.
        k: how many to pick, 0..N.

    Returns:
        LongTensor [B, k], in the order of the picks, without duplicates.

    Raises:
        ValueError: a shape, a dtype or k that doesn't fit.

    Source: ToDRE (arXiv 2505.18757v2), stage 1; no official code. Its first version speaks of k-center, which is
    `maxmin_greedy` with the same `first`.
    """
    check(features, k, first)

    def choose(part: slice) -> Tensor:
        cosines = cosines_of(features, part)
        total = torch.zeros(cosines.shape[:2], dtype=cosines.dtype, device=cosines.device)

        def step(pick: Tensor) -> Tensor:
            return total.add_(cosines.rows(pick)).scatter_(1, pick.unsqueeze(1), torch.inf).argmin(1)

        return _follow(first[part], k, step)

    return by_part(choose, features, k)


def by_part(choose: Callable[[slice], Tensor], features: Tensor | Cosines, k: int) -> Tensor:
    """Picks [B, k], as many units together as their similarities allow."""
    x = features_of(features)
    order = torch.empty(x.shape[0], k, dtype=torch.long, device=x.device)
    size = x.shape[0] if isinstance(features, Cosines) else units_at_once(x)
    for b in range(0, x.shape[0] if k else 0, size):
        part = slice(b, b + size)
        order[part] = choose(part)
    return order


def _follow(pick: Tensor, k: int, step: Callable[[Tensor], Tensor]) -> Tensor:
    """Picks [B, k] that begin with pick [B]; `step` marks a pick as taken and finds the next."""
    picks = [pick]
    while len(picks) < k:
        picks.append(step(picks[-1]))
    return torch.stack(picks, 1)


def check(features: Tensor | Cosines, k: int, first: Tensor | None, excluded: Tensor | None = None) -> None:
    """Raises ValueError for arguments that don't fit."""
    features = features_of(features)
    if features.ndim != 3 or not features.is_floating_point():
        raise ValueError(f"features are {features.dtype} {list(features.shape)}; possible: floats [B, N, D]")
    if not 0 <= k <= features.shape[1]:
        raise ValueError(f"k={k} for {features.shape[1]} tokens; possible: 0 to {features.shape[1]}")
    if first is not None and (tuple(first.shape) != features.shape[:1] or first.dtype != torch.long):
        raise ValueError(f"first is {first.dtype} {list(first.shape)}; possible: int64 [{features.shape[0]}]")
    if excluded is not None and (excluded.shape != features.shape[:2] or excluded.dtype != torch.bool):
        possible = f"possible: bool {list(features.shape[:2])}"
        raise ValueError(f"excluded is {excluded.dtype} {list(excluded.shape)}; {possible}")
