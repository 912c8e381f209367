"""What the arguments of attention reductions must be, whichever implementation runs."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def check_rows(
    queries: Tensor, keys: Tensor, key_mask: Tensor | None, causal_positions: Tensor | None, reduce_heads: str
) -> tuple[int, int, int, int]:
    """B, H, R, N of `attention_rows`. Raises ValueError for a shape, dtype or option that doesn't fit."""
    batch, heads, rows, n = _check(queries, keys, key_mask)
    _check_choice("reduce_heads", reduce_heads, ("mean", "sum", "none"))
    if causal_positions is not None and tuple(causal_positions.shape) not in ((rows,), (batch, rows)):
        possible = f"[{rows}] or [{batch}, {rows}]"
        raise ValueError(f"causal_positions must be {possible}, got shape {tuple(causal_positions.shape)}")
    return batch, heads, rows, n


def check_columns(
    queries: Tensor,
    keys: Tensor,
    reduce_queries: str,
    reduce_heads: str,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    packed: bool,
    chunk: int | None,
    lse: Tensor | None,
) -> tuple[int, int, int, int]:
    """B, H, M, N of `attention_columns`. Raises ValueError for a shape, dtype or option that doesn't fit."""
    batch, heads, m, n = _check(queries, keys, key_mask)
    _check_choice("reduce_queries", reduce_queries, ("mean", "sum"))
    _check_choice("reduce_heads", reduce_heads, ("mean", "sum"))
    _check_mask("query_mask", query_mask, batch, m)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    if packed and (batch != 1 or m != n):
        raise ValueError(f"cu_seqlens needs B == 1 and as many queries as keys, got B={batch}, M={m}, N={n}")
    if lse is not None and (tuple(lse.shape) != (batch, heads, m) or lse.dtype != torch.float32):
        raise ValueError(f"lse must be float32 [{batch}, {heads}, {m}], got {lse.dtype} {list(lse.shape)}")
    return batch, heads, m, n


def check_bounds(bounds: Sequence[int], n: int) -> None:
    """Raises ValueError unless segments cover N positions, each once and in order."""
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != n or any(a > b for a, b in pairwise(bounds)):
        raise ValueError(f"cu_seqlens must rise from 0 to N={n}, got {list(bounds)}")


def _check(queries: Tensor, keys: Tensor, key_mask: Tensor | None) -> tuple[int, int, int, int]:
    """Shapes that fit together; returns B, H, M, N."""
    if queries.ndim != 4 or keys.ndim != 4:
        shapes = f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        raise ValueError(f"queries must be [B, H, M, D] and keys [B, Hkv, N, D], got shapes {shapes}")
    (batch, heads, m, dim), (batch_k, heads_kv, n, dim_k) = queries.shape, keys.shape
    if (batch, dim) != (batch_k, dim_k):
        raise ValueError(f"queries have B={batch}, D={dim} but keys B={batch_k}, D={dim_k}; they must be equal")
    if heads_kv < 1 or heads % heads_kv:
        raise ValueError(f"{heads} query heads can't share {heads_kv} key heads; H must be a multiple of Hkv")
    _check_mask("key_mask", key_mask, batch, n)
    return batch, heads, m, n


def _check_mask(name: str, mask: Tensor | None, batch: int, length: int) -> None:
    if mask is not None and (tuple(mask.shape) != (batch, length) or mask.dtype != torch.bool):
        raise ValueError(f"{name} must be bool [{batch}, {length}], got {mask.dtype} {list(mask.shape)}")


def _check_choice(name: str, value: str, possible: tuple[str, ...]) -> None:
    if value not in possible:
        raise ValueError(f"{name}={value!r} isn't one of {', '.join(possible)}")
