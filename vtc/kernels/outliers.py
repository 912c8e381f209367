"""Outliers among numbers: by the local outlier factor, and by the quartiles.

The local outlier factor is that of Breunig et al., SIGMOD 2000, as scikit-learn defines it.
"""

import torch
from torch import Tensor

FACTOR = 1.5  # from which a point counts as an outlier, as in scikit-learn's contamination="auto"
EPS = 1e-10


@torch.no_grad()
def local_outliers(values: Tensor, neighbors: int, among: Tensor | None = None) -> Tensor:
    """Which of values [B, n] are less densely surrounded than their neighbours are, by more than half: bool [B, n].

    A point's reachability to another is their distance, at least the latter's distance to its k-th nearest point; its
    density the reciprocal of its mean reachability to its k nearest points (plus 1e-10); its factor their mean density
    divided by its own. k is `neighbors`, at most all other points.

    Exact, in float64: the nearest of sorted numbers stand beside each other, so memory is 2 * k per number.
    among [B, n] bool: only these are points.
    """
    batch, n = values.shape
    neighbors = min(neighbors, max(1, n - 1))
    among = torch.ones_like(values, dtype=torch.bool) if among is None else among
    points = among.sum(1, keepdim=True)
    k = (points - 1).clamp(1, neighbors)
    x, place = values.double().masked_fill(~among, torch.inf).sort(dim=1, stable=True)
    is_point = torch.arange(n, device=x.device) < points
    x = x.masked_fill(~is_point, 0)
    step = torch.cat([torch.arange(-neighbors, 0), torch.arange(1, neighbors + 1)]).to(x.device)
    beside = torch.arange(n, device=x.device)[:, None] + step
    real = (beside >= 0) & (beside < points.unsqueeze(2))
    beside = beside.clamp(0, n - 1).expand(batch, -1, -1)

    def at(numbers: Tensor, index: Tensor) -> Tensor:
        return numbers.gather(1, index.flatten(1)).view_as(index)

    away = (at(x, beside) - x.unsqueeze(2)).abs().masked_fill(~real, torch.inf)
    away, rank = away.sort(dim=2, stable=True)
    away, near = away[:, :, :neighbors], beside.gather(2, rank)[:, :, :neighbors]
    counted = torch.arange(away.shape[2], device=x.device) < k.unsqueeze(2)
    radius = away.gather(2, (k - 1).unsqueeze(2).expand(-1, n, -1))[:, :, 0]
    reach = torch.maximum(away, at(radius, near)).masked_fill(~counted, 0)
    density = 1 / (reach.sum(2) / k + EPS)
    factor = at(density, near).masked_fill(~counted, 0).sum(2) / k / density
    outlier = (factor > FACTOR) & is_point & (points > 1)
    return torch.zeros_like(among).scatter_(1, place, outlier)
