"""How similar a patch is to its neighbours on the raster, in features and position.

Source: VisionTrim (ICLR 2026, arXiv 2601.22674), a part of the paper that the released code does not use.
"""

import torch
from torch import Tensor

FEATURES, PLACES, SHARE = 1.0, 1.0, 0.5  # w1, w2 and w3 of the paper


@torch.no_grad()
def local_importance(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Softmax [N] over the patches of one unit of their affinity to the 3 x 3 block around them.

    features [N, D] on a raster of grid = (rows, columns). The affinity of two patches is minus their squared distance
    over the variance of all entries of `features`, minus half the same of their (row, column); that of a patch is the
    sum over the block (itself included), divided by 9. Neighbours beyond the edge count as 0, which favours patches at
    the edge, as in the paper's code. float32, or float64 for float64 features.
    """
    rows, columns = grid
    x = features.to(torch.promote_types(features.dtype, torch.float32)).view(rows, columns, -1)
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).double()
    spread, wide = _variance(x), float(_variance(place))
    total = x.new_zeros(rows, columns)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            centre = slice(max(0, -down), rows - max(0, down)), slice(max(0, -right), columns - max(0, right))
            neighbour = slice(max(0, down), rows - max(0, -down)), slice(max(0, right), columns - max(0, -right))
            distance = (x[centre] - x[neighbour]).square().sum(-1) / (FEATURES * spread)
            total[centre] -= distance + SHARE * (down**2 + right**2) / (PLACES * wide)
    return (total / 9).flatten().softmax(0)


def _variance(x: Tensor) -> Tensor:
    """Unbiased variance of all entries; 1 if they are all equal, since all distances are 0 then."""
    variance = x.var() if x.numel() > 1 else x.new_zeros(())
    return variance.where(variance > 0, 1)
