"""A bias on the keys of attention for kernels that take no mask: one more dimension of queries and keys."""

import torch
from torch import Tensor


def augmented(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [B, H, M, D] and k [B, Hkv, N, D] with the dimensions that add `bias` [B, N] to scale * q k^T, D filled up to a
    multiple of 8; a bias below half of what the dtype holds becomes that."""
    wide = -(-(query.shape[-1] + 1) // 8) * 8 - query.shape[-1] - 1
    last = (bias / scale).to(key.device).clamp(min=torch.finfo(key.dtype).min / 2).to(key.dtype)
    last = last[:, None, :, None].expand(*key.shape[:-1], 1)
    query = torch.cat([query, query.new_ones(*query.shape[:-1], 1), query.new_zeros(*query.shape[:-1], wide)], -1)
    return query, torch.cat([key, last, key.new_zeros(*key.shape[:-1], wide)], -1)
