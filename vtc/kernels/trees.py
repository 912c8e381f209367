"""Merging through time and space: trees of similar tokens in frame after frame, then clusters of trees in each frame.

Source: FlashVID (arXiv 2602.08024).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vtc.kernels.density_peaks import density_peaks
from vtc.kernels.products import product, unit_vectors

NEIGHBOURS = 7  # of a token whose density is estimated
LOWEST = -1 + 1e-6


class TreeJoins(NamedTuple):
    """Of each token [F * n] the place that it goes to, -1 where it is dropped, and its weight there."""

    into: Tensor
    weight: Tensor


@torch.no_grad()
def segments(means: Tensor, cut: float, least: int) -> list[int]:
    """How many frames each segment has. means: [F, D]; a cosine of neighbours below `cut` begins a new segment, and
    the lowest of the others where these are fewer than `least`. The host waits for the device."""
    unit = unit_vectors(means)
    cosines = (1 - (unit[1:] - unit[:-1]).square().sum(1) / 2).tolist()  # 1 for equal frames
    cuts = [i for i, cosine in enumerate(cosines) if cosine < cut]
    others = sorted((i for i in range(len(cosines)) if i not in cuts), key=lambda i: (cosines[i], i))
    bounds = [-1, *sorted([*cuts, *others[: max(0, least - len(cuts) - 1)]]), len(means) - 1]
    return [b - a for a, b in zip(bounds, bounds[1:])]


@torch.no_grad()
def join(x: Tensor, apart: Tensor, quota: list[int], link: float, mean: bool, exact: bool) -> TreeJoins:
    """Merges the tokens of a segment that are not set apart into about `quota` tokens of each frame.

    A token is linked to the most similar one in the frame before if their cosine is above `link`. If fewer tokens are
    then left than quotas and tokens set apart, only the most similar are linked, so that one more is left (the code
    links those above the cosine of the first that need not be); of equal ones those with the lower index. The tokens
    of each frame that are not linked are the roots of trees; if all quotas together are fewer, they are clustered by
    density peaks.

    Args:
        x: [F, n, D], float32 or float64.
        apart: bool [F, n], tokens that neither join nor are joined.
        quota: of each frame.
        link: cosine above which tokens are linked.
        mean: divide a tree by its tokens; else by one more than the number of tokens that are linked to its root.
        exact: clusters are as many as the quotas together, by largest remainders; else rounded up in each frame.
    """
    frames, each = apart.shape
    best, parent = _nearest(x, apart)
    linked = best > link
    room = frames * each - sum(quota) - int(apart.sum())
    if int(linked.sum()) > room:
        rank = best.flatten().argsort(descending=True, stable=True).argsort().view_as(best)
        linked = (rank < room - 1) & (best > LOWEST)
    root = torch.arange(frames * each, device=x.device).view(frames, each)
    for f in range(1, frames):
        root[f] = torch.where(linked[f], root[f - 1][parent[f]], root[f])
    root = root.flatten()
    ones, before = torch.ones_like(best).flatten(), torch.arange(-1, frames - 1, device=x.device).unsqueeze(1) * each
    members = root if mean else (parent + before)[linked]
    counted = (ones * (not mean)).index_add(0, members, ones[: len(members)])
    weight = counted.reciprocal()[root]
    tree = torch.zeros_like(x.flatten(0, 1)).index_add_(0, root, x.flatten(0, 1) * weight.unsqueeze(1))
    free = ~linked & ~apart
    centre, share = _clustered(tree.view_as(x), free, _clusters(free.sum(1).tolist(), quota, exact))
    into = torch.where(apart.flatten(), -1, centre[root])
    return TreeJoins(into, weight * share[root])


def _nearest(x: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine [F, n] with the most similar token of the frame before, and its place there; -1 for none."""
    unit = unit_vectors(x)
    best, parent = torch.full_like(x[..., 0], -1), torch.zeros_like(apart, dtype=torch.long)
    for f in range(1, len(x)):
        cosine = product(unit[f], unit[f - 1].t()).masked_fill(apart[f].unsqueeze(1) | apart[f - 1], -1)
        best[f], parent[f] = cosine.max(1)
        exact = 1 - (unit[f] - unit[f - 1][parent[f]]).square().sum(1) / 2  # 1 for equal tokens
        best[f] = torch.where(best[f] == -1, -1, exact)
    return best, parent


def _clusters(sizes: list[int], quota: list[int], exact: bool) -> list[int]:
    """How many clusters the trees of each frame form."""
    trees, wanted = sum(sizes), sum(quota)
    if wanted >= trees:
        return sizes
    if not exact:
        return [math.ceil(size * (wanted / trees)) for size in sizes]
    counts = [size * wanted // trees for size in sizes]
    order = sorted(range(len(sizes)), key=lambda f: (-(sizes[f] * wanted % trees), f))
    for f in order[: wanted - sum(counts)]:
        counts[f] += 1
    return counts


def _clustered(x: Tensor, free: Tensor, clusters: list[int]) -> tuple[Tensor, Tensor]:
    """Of each token [F * n] the centre of its cluster (-1 where its frame has none, or it is no tree) and 1 / size."""
    frames, each = free.shape
    centre, share = free.new_full((frames * each,), -1, dtype=torch.long), torch.ones_like(x[..., 0]).flatten()
    for f, count in enumerate(clusters):
        places = free[f].nonzero().flatten()
        if not count:
            continue
        if count == len(places):
            centre[f * each + places] = f * each + places
            continue
        centres, group = density_peaks(x[f, places].unsqueeze(0), count, neighbours=NEIGHBOURS)
        size = torch.zeros_like(share[:count]).index_add(0, group[0], torch.ones_like(share[: len(places)]))
        centre[f * each + places] = f * each + places[centres[0]][group[0]]
        share[f * each + places] = size.reciprocal()[group[0]]
    return centre, share
