"""Attention reductions in plain torch: the CPU path, the definition, and the oracle of every faster version.

The full attention of a layer is [H, M, N] per sample: 16 heads over 8192 patches are 4 GiB in float32. Selection needs
only [N] of it, or a few rows, so both functions go through it in blocks (some heads x some queries x all keys), apply
the softmax in place and keep the reduction. Extra memory is one block plus float32 copies of the keys of its heads.

All arithmetic is float32 (float64 if an input is float64), whatever the input dtype and inside autocast too; products
follow torch's setting for float32 matmul precision. Nothing is recorded for autograd.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor

BLOCK = {"cpu": 2**20, "other": 2**24}  # elements in a block: about half of the cache of a core; few launches on a GPU
GEMM_ROWS = 256  # rows below which a matrix product is slow: a block loses heads first, and rows only down to this


@torch.no_grad()
def attention_rows(
    queries: Tensor,
    keys: Tensor,
    *,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    causal_positions: Tensor | None = None,
    reduce_heads: str = "mean",
) -> Tensor:
    """The attention that chosen queries pay to every key.

    Query head h reads key head h // (H / Hkv). A row that sees no key is zero.

    Args:
        queries: [B, H, R, D], the chosen rows only.
        keys: [B, Hkv, N, D]; Hkv divides H.
        scale: factor on the products; D ** -0.5 if None.
        key_mask: bool [B, N], True where a key may be attended.
        causal_positions: int [R] or [B, R]; row r sees keys 0..causal_positions[r] (none if negative).
        reduce_heads: "mean", "sum", or "none" to keep the head axis.

    Returns:
        Probabilities, float32 or float64: [B, R, N], or [B, H, R, N] for "none".

    Raises:
        ValueError: a shape, dtype or option that doesn't fit.
    """
    batch, heads, rows, n = _check(queries, keys, key_mask)
    _check_choice("reduce_heads", reduce_heads, ("mean", "sum", "none"))
    if causal_positions is not None:
        if tuple(causal_positions.shape) not in ((rows,), (batch, rows)):
            possible = f"[{rows}] or [{batch}, {rows}]"
            raise ValueError(f"causal_positions must be {possible}, got shape {tuple(causal_positions.shape)}")
        causal_positions = causal_positions.expand(batch, rows)
    kept = (heads,) if reduce_heads == "none" else ()
    out = queries.new_zeros((batch, *kept, rows, n), dtype=_dtype(queries, keys))
    for b in range(batch):
        visible = None if key_mask is None else key_mask[b]
        limit = None if causal_positions is None else causal_positions[b]
        for head, row, block, alive in _softmax_blocks(queries[b], keys[b], scale, visible, limit):
            if alive is not None:
                block.mul_(alive[:, None])
            if reduce_heads == "none":
                out[b, head, row] = block
            else:
                out[b, row] += block.sum(0)
    return out.div_(heads) if reduce_heads == "mean" else out


@torch.no_grad()
def attention_columns(
    queries: Tensor,
    keys: Tensor,
    *,
    scale: float | None = None,
    reduce_queries: str = "mean",
    reduce_heads: str = "mean",
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    causal: bool = False,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The attention that every key receives, summed or averaged over (chosen) queries and heads.

    Query head h reads key head h // (H / Hkv). A query that sees no key adds nothing, but counts in a mean over
    queries; a query masked out does neither.

    Args:
        queries: [B, H, M, D].
        keys: [B, Hkv, N, D]; Hkv divides H.
        scale: factor on the products; D ** -0.5 if None.
        reduce_queries: "mean" or "sum". With `cu_seqlens` the mean of a segment is over its own queries.
        reduce_heads: "mean" or "sum".
        query_mask: bool [B, M], True for queries that count; all if None.
        key_mask: bool [B, N], True where a key may be attended.
        causal: query i sees key j only if j <= i + (N - M): the queries are the last M of N positions.
        cu_seqlens: int [S + 1], from 0 to N: packed sequences that attend only inside themselves. Needs B == 1 and
            M == N. A CUDA tensor is read once, which waits for the device; a list doesn't.
        chunk: queries in a block. By default a block has at most about 2 ** 20 elements on the CPU, where it should
            stay in the cache, and 2 ** 24 elsewhere, but always one query. Results differ by rounding only.

    Returns:
        [B, N], float32 or float64.

    Raises:
        ValueError: a shape, dtype or option that doesn't fit.
    """
    batch, heads, m, n = _check(queries, keys, key_mask)
    _check_choice("reduce_queries", reduce_queries, ("mean", "sum"))
    _check_choice("reduce_heads", reduce_heads, ("mean", "sum"))
    _check_mask("query_mask", query_mask, batch, m)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    segments = [(0, m, 0, n)] if cu_seqlens is None else _segments(cu_seqlens, batch, m, n)
    out = queries.new_zeros((batch, n), dtype=_dtype(queries, keys))
    for b in range(batch):
        for q0, q1, k0, k1 in segments:
            q, weight = queries[b, :, q0:q1], out.new_ones(q1 - q0)
            if query_mask is not None:
                chosen = query_mask[b, q0:q1]
                q = q.masked_fill(~chosen[:, None], 0)  # whatever a padding row holds, NaN too, must not leak
                weight = chosen.to(out.dtype)
            visible = None if key_mask is None else key_mask[b, k0:k1]
            offset = (k1 - k0) - (q1 - q0) if causal else None
            total = out[b, k0:k1]
            for _, row, block, alive in _softmax_blocks(q, keys[b, :, k0:k1], scale, visible, offset, chunk):
                share = weight[row] if alive is None else weight[row] * alive
                total[: block.shape[2]].addmv_(block.flatten(0, 1).t(), share.repeat(block.shape[0]))
            if reduce_queries == "mean":
                total.div_(weight.sum().clamp_min(1))
    return out.div_(heads) if reduce_heads == "mean" else out


def _softmax_blocks(
    q: Tensor,
    k: Tensor,
    scale: float | None,
    visible: Tensor | None,
    limit: Tensor | int | None,
    chunk: int | None = None,
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Softmax attention of one sample, block by block: (query heads, query rows, probabilities, rows that count).

    q [H, M, D], k [Hkv, N, D], visible bool [N] or None. limit: the last key that a row sees, a tensor [M], or an int x
    for "row i sees keys 0..i + x" (then the block holds only the first keys, as far as its rows see any). Rows that see
    no key have arbitrary probabilities and 0 in the last value [rows], which is None when there can be none of them.
    Key heads aren't repeated: the query heads that share one are stacked as further rows of its product.
    """
    (heads, m, dim), (heads_kv, n, _) = q.shape, k.shape
    if m == 0 or n == 0:
        return
    group, dtype = heads // heads_kv, _dtype(q, k)
    scale = dim**-0.5 if scale is None else scale
    budget = BLOCK["cpu" if q.device.type == "cpu" else "other"]
    rows = min(m, chunk or max(1, GEMM_ROWS // group))
    step_kv = min(heads_kv, max(1, budget // (group * rows * n)))
    step = rows if chunk else min(m, max(1, budget // (step_kv * group * n)))
    if visible is not None:
        k = k.masked_fill(~visible[:, None], 0)  # a bias of -inf would not hide NaN in padding
    for h in range(0, heads_kv, step_kv):
        kt = k[h : h + step_kv].to(dtype).transpose(1, 2)
        head = slice(h * group, (h + kt.shape[0]) * group)
        for i in range(0, m, step):
            row = slice(i, min(i + step, m))
            seen = min(n, row.stop + limit) if isinstance(limit, int) else n
            if seen < 1:
                continue
            part = q[head, row].to(dtype) * scale
            with _no_autocast(q.device.type):
                block = torch.bmm(part.reshape(kt.shape[0], -1, dim), kt[:, :, :seen]).view(part.shape[0], -1, seen)
            bias, alive = _mask_bias(row, seen, visible, limit, block)
            if bias is not None:
                block.add_(bias)
            yield head, row, torch.softmax(block, -1, out=block), alive


def _no_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _mask_bias(
    row: slice, seen: int, visible: Tensor | None, limit: Tensor | int | None, block: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What to add to the scores of a block, [rows or 1, seen] of 0 and -inf, and which rows see a key, [rows or 1].

    Rows that see none get a bias of 0, so that the softmax stays finite.
    """
    if visible is None and limit is None:
        return None, None
    allowed = None if visible is None else visible[None, :seen]
    if limit is not None:
        rows = torch.arange(row.start, row.stop, device=block.device) + limit if isinstance(limit, int) else limit[row]
        past = torch.arange(seen, device=block.device) <= rows[:, None]
        allowed = past if allowed is None else past & allowed
    alive = allowed.any(1)
    bias = torch.zeros(allowed.shape, dtype=block.dtype, device=block.device)
    return bias.masked_fill_(~allowed & alive[:, None], -torch.inf), alive.to(block.dtype)


def _segments(cu_seqlens: Tensor | Sequence[int], batch: int, m: int, n: int) -> list[tuple[int, int, int, int]]:
    bounds = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
    if batch != 1 or m != n:
        raise ValueError(f"cu_seqlens needs B == 1 and as many queries as keys, got B={batch}, M={m}, N={n}")
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != n or any(a > b for a, b in pairwise(bounds)):
        raise ValueError(f"cu_seqlens must rise from 0 to N={n}, got {bounds}")
    return [(a, b, a, b) for a, b in pairwise(bounds)]


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


def _dtype(queries: Tensor, keys: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (queries.dtype, keys.dtype) else torch.float32
