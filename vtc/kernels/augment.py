"""A bias on attention keys for kernels that accept no mask: one extra dimension of queries and keys."""

import torch
from torch import Tensor


def augmented(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [B, H, M, D] and k [B, Hkv, N, D] with extra dimensions that add `bias` [B, N] to scale * q k^T, D padded to a
    multiple of 8; a bias is clamped to at least half of the dtype's minimum."""
    wide = -(-(query.shape[-1] + 1) // 8) * 8 - query.shape[-1] - 1
    last = (bias / scale).to(key.device).clamp(min=torch.finfo(key.dtype).min / 2).to(key.dtype)
    last = last[:, None, :, None].expand(*key.shape[:-1], 1)
    query = torch.cat([query, query.new_ones(*query.shape[:-1], 1), query.new_zeros(*query.shape[:-1], wide)], -1)
    return query, torch.cat([key, last, key.new_zeros(*key.shape[:-1], wide)], -1)
