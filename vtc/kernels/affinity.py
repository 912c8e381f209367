"""How much a patch resembles its neighbours on the raster, in features and in place.

Source: VisionTrim (ICLR 2026, arXiv 2601.22674), a part of its paper that its released code leaves out.
"""

import torch
from torch import Tensor

FEATURES, PLACES, SHARE = 1.0, 1.0, 0.5  # w1, w2 and w3 of the paper


@torch.no_grad()
def local_importance(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Softmax [N] over the patches of one unit of their affinity to the 3 x 3 block around them.

    features [N, D] on a raster of grid = (rows, columns). The affinity of two patches is minus their squared distance
    over the variance of all entries of `features`, minus half the same of their (row, column); that of a patch is the
    sum over the block (itself included), divided by 9. Neighbours beyond the edge count as 0, so that patches at the
    edge look better, as in the paper's code. float32, or float64 for float64 features.
    """
    rows, columns = grid
    x = features.to(torch.promote_types(features.dtype, torch.float32)).view(rows, columns, -1)
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    spread, wide = _variance(x), float(_variance(place))
    total = x.new_zeros(rows, columns)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            here = slice(max(0, -down), rows - max(0, down)), slice(max(0, -right), columns - max(0, right))
            there = slice(max(0, down), rows - max(0, -down)), slice(max(0, right), columns - max(0, -right))
            apart = (x[here] - x[there]).square().sum(-1) / (FEATURES * spread)
            total[here] -= apart + SHARE * (down**2 + right**2) / (PLACES * wide)
    return (total / 9).flatten().softmax(0)


def _variance(x: Tensor) -> Tensor:
    """Of all entries, unbiased; 1 where they are all equal and no distance is left to be divided."""
    variance = x.var() if x.numel() > 1 else x.new_zeros(())
    return variance.where(variance > 0, 1)
