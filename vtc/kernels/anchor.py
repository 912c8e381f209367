"""Cosines to a few anchors, and sets of dissimilar tokens: each anchor in turn selects those least similar to it.

Source: DART (arXiv 2502.11494). Cosines are sums of products token by token, not a matrix product, so equal tokens have
equal cosines at any place and in any batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = {"cpu": 2**20, "other": 2**26}  # products in memory at once: fits a core's cache; few launches


@torch.no_grad()
def cosines(features: Tensor, anchors: Tensor) -> Tensor:
    """Cosine of every token with every anchor, 0 where either has length 0.

    features: [B, N, D]. anchors: [B, P, D]. -> [B, P, N] float32, or float64 if either is. Raises ValueError for shapes
    that do not fit.
    """
    if features.ndim != 3 or anchors.ndim != 3 or features.shape[::2] != anchors.shape[::2]:
        shapes = f"{tuple(features.shape)} and {tuple(anchors.shape)}"
        raise ValueError(f"features must be [B, N, D] and anchors [B, P, D], got shapes {shapes}")
    batch, tokens, width = features.shape
    dtype = torch.promote_types(torch.promote_types(features.dtype, anchors.dtype), torch.float32)
    aims = _unit(anchors.to(dtype)).unsqueeze(2)
    similarity = aims.new_empty(batch, aims.shape[1], tokens)
    block = BLOCK["cpu" if features.device.type == "cpu" else "other"]
    step = max(1, block // max(1, batch * aims.shape[1] * width))
    for i in range(0, tokens, step):
        similarity[:, :, i : i + step] = (_unit(features[:, i : i + step].to(dtype)).unsqueeze(1) * aims).sum(-1)
    return similarity


@torch.no_grad()
def least_similar(features: Tensor, anchors: Tensor, quotas: Sequence[int], taken: Tensor) -> Tensor:
    """Tokens selected by the anchors, one anchor after the other, and the tokens taken before.

    Anchor p selects the quotas[p] tokens with the lowest cosine to it among those still free, ties to the lower index.
    The order of the anchors therefore matters.

    Args:
        features: [B, N, D].
        anchors: [B, P, D].
        quotas: P numbers >= 0.
        taken: LongTensor [B, t], distinct in each row.

    Returns:
        LongTensor [B, t + sum(quotas)], ascending.

    Raises:
        ValueError: shapes that do not fit, or more tokens than there are.
    """
    similarity = cosines(features, anchors)
    batch, tokens = features.shape[:2]
    total = taken.shape[-1] + sum(quotas)
    if len(quotas) != anchors.shape[1] or min(quotas, default=0) < 0 or total > tokens:
        raise ValueError(
            f"quotas={list(quotas)} and {taken.shape[-1]} taken do not fit {anchors.shape[1]} anchors, {tokens} tokens"
        )
    chosen = torch.zeros(batch, tokens, dtype=torch.bool, device=features.device).scatter_(1, taken, True)
    for row, quota in zip(similarity.unbind(1), quotas):
        nearest_last = row.masked_fill(chosen, torch.inf).sort(dim=1, stable=True).indices
        chosen.scatter_(1, nearest_last[:, :quota], True)
    return (~chosen).to(torch.uint8).sort(dim=1, stable=True).indices[:, :total]


def _unit(x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.masked_fill(length == 0, 1)
