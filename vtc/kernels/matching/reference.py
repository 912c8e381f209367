"""Bipartite matching and energy in plain torch: the CPU path, the definition, and the oracle of every faster version.

Both go through the cosines of a unit's tokens in blocks of rows, and never hold all of them. float32 inside (float64
for float64 metrics), autocast off.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from vtc.kernels.matching.checks import check_energy, check_partners

BLOCK = 2**22  # cosines held at a time


@torch.no_grad()
def best_partners(metric: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """For each token of one set the most similar token of another, by cosine.

    Args:
        metric: [B, N, e]. A vector of length 0 has cosine 0 with every other.
        first: LongTensor [B, n], indices into N; n may be 0.
        second: LongTensor [B, m], m at least 1 unless n is 0.

    Returns:
        The cosine [B, n] float32 or float64, and the place 0..m-1 in `second` [B, n]; the first of equals.

    Raises:
        ValueError: a shape that doesn't fit.
    """
    check_partners(metric, first, second)
    unit = unit_rows(metric)
    wide = unit.shape[2]
    a = unit.gather(1, first.unsqueeze(-1).expand(-1, -1, wide))
    b = unit.gather(1, second.unsqueeze(-1).expand(-1, -1, wide)).transpose(1, 2)
    rows = max(1, BLOCK // max(1, len(metric) * b.shape[2]))
    with _no_autocast(metric):
        blocks = [(part @ b).max(2) for part in a.split(rows, dim=1)] if first.shape[1] else []
    if not blocks:
        return a.new_empty(len(metric), 0), first.new_empty(len(metric), 0)
    return torch.cat([x.values for x in blocks], 1), torch.cat([x.indices for x in blocks], 1)


@torch.no_grad()
def energy(metric: Tensor, margin: float, alpha: float = 1.0) -> Tensor:
    """How crowded it is around each token: the mean over all tokens of its unit, itself included, of z for z > 0 and
    alpha * (exp(z) - 1) else, z = cosine - margin.

    Args:
        metric: [B, N, e]; a vector of length 0 has cosine 0 with every other and itself.

    Returns:
        [B, N] float32 or float64.

    Raises:
        ValueError: metric isn't [B, N, e].
    """
    check_energy(metric)
    unit = unit_rows(metric)
    columns = unit.transpose(1, 2)
    rows = max(1, BLOCK // max(1, len(metric) * unit.shape[1]))
    with _no_autocast(metric):
        parts = [torch.nn.functional.elu(part @ columns - margin, alpha).mean(2) for part in unit.split(rows, dim=1)]
    return torch.cat(parts, 1)


def unit_rows(metric: Tensor) -> Tensor:
    """Rows divided by their lengths, float32 or float64."""
    rows = metric.to(torch.promote_types(metric.dtype, torch.float32))
    length = rows.norm(dim=-1, keepdim=True)
    return rows / length.masked_fill(length == 0, 1)


def _no_autocast(metric: Tensor):
    device = metric.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
