"""Density-peak clustering: centres have many close neighbours and are far from denser tokens.

Source: Rodriguez and Laio, Science 2014, in the k-nearest-neighbour form that SparseVLM (arXiv 2410.04417) releases.
"""

import torch
from torch import Tensor

from vtc.kernels.products import float_type, product


@torch.no_grad()
def density_peaks(
    features: Tensor, clusters: int, ranked: bool = True, neighbours: int | None = None
) -> tuple[Tensor, Tensor]:
    """The centres and the cluster of every token.

    The distance d of two tokens is the Euclidean one divided by sqrt(D). A token's density is exp(-mean of d^2 over the
    `clusters` tokens nearest to it, itself included); its separation the distance to the nearest denser token, or the
    largest distance of all if none is denser. The largest products of the two are centres; every other token joins the
    nearest of them. Among equals the lower index is the denser, and comes first. One unit after another, [n, n]
    distances each.

    Args:
        features: [B, n, D].
        clusters: 1..n.
        ranked: whether of equal densities the lower index counts as the denser; else none does, as where no noise is
            added in the released codes. Two tokens that are nearest to each other are equal if there are two clusters.
        neighbours: the most tokens whose distances make a density, where that is less than `clusters`.

    Returns:
        centres, LongTensor [B, clusters] from the largest product on; cluster 0..clusters-1 of each token [B, n].
    """
    near = clusters if neighbours is None else min(clusters, neighbours)
    units = [_peaks(unit.to(float_type(unit)), clusters, ranked, near) for unit in features]
    return torch.stack([centres for centres, _ in units]), torch.stack([group for _, group in units])


def _peaks(x: Tensor, clusters: int, ranked: bool, near: int) -> tuple[Tensor, Tensor]:
    n, width = x.shape
    x = x - x.mean(0)  # less cancellation for similar tokens with large norms
    norm = x.square().sum(1)
    square = (norm[:, None] + norm - 2 * product(x, x.t())).clamp_(min=0).div_(width).fill_diagonal_(0)
    square = (square + square.t()) / 2  # exactly symmetric, so that equal densities are equal
    density = square.topk(near, 1, largest=False).values.mean(1).neg().exp()
    rank = density.sort(descending=True, stable=True).indices.argsort().neg() if ranked else density
    distance = square.sqrt()
    separation = distance.masked_fill(rank[:, None] >= rank, torch.inf).amin(1)
    separation = torch.where(rank == rank.max(), distance.max(), separation)
    centres = (density * separation).sort(descending=True, stable=True).indices[:clusters]
    group = distance[:, centres].argmin(1)
    return centres, group.scatter(0, centres, torch.arange(clusters, device=x.device))
