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

from vtc.kernels.attention_reduce.checks import check_bounds, check_columns, check_rows

BLOCK = {"cpu": 2**19, "other": 2**24}  # elements in a block: it stays in the cache of a core; few launches on a GPU
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
    batch, heads, rows, n = check_rows(queries, keys, key_mask, causal_positions, reduce_heads)
    if causal_positions is not None:
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
    lse: Tensor | None = None,
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
            M == N. Here a CUDA tensor is read once, which waits for the device; a list doesn't. Triton never waits,
            so it checks the values of a list only.
        chunk: queries in a block. By default a block has at most about 2 ** 19 elements on the CPU, where it should
            stay in the cache, and 2 ** 24 elsewhere, but always one query. Results differ by rounding only. Triton
            ignores it.
        lse: float32 [B, H, M], the natural logarithm of the sum of exp(score) over the keys that a query sees, scores
            scaled and masked, as flash attention returns it (packed: its [H, M] with a first axis added). It saves the
            first of two passes. A probability is never taken as more than 1, whatever lse says.

    Returns:
        [B, N], float32 or float64.

    Raises:
        ValueError: a shape, dtype or option that doesn't fit.
    """
    packed = cu_seqlens is not None
    batch, heads, m, n = check_columns(
        queries, keys, reduce_queries, reduce_heads, query_mask, key_mask, packed, chunk, lse
    )
    segments = [(0, m, 0, n)]
    if packed:
        bounds = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
        check_bounds(bounds, n)
        segments = [(a, b, a, b) for a, b in pairwise(bounds)]
    out = queries.new_zeros((batch, n), dtype=_dtype(queries, keys))
    for b in range(batch):
        for q0, q1, k0, k1 in segments:
            q, weight = queries[b, :, q0:q1], out.new_ones(q1 - q0)
            norm = None if lse is None else lse[b, :, q0:q1]
            if query_mask is not None:
                chosen = query_mask[b, q0:q1]
                q = q.masked_fill(~chosen[:, None], 0)  # whatever a padding row holds, NaN too, must not leak
                norm = None if norm is None else norm.masked_fill(~chosen, 0)
                weight = chosen.to(out.dtype)
            visible = None if key_mask is None else key_mask[b, k0:k1]
            offset = (k1 - k0) - (q1 - q0) if causal else None
            total = out[b, k0:k1]
            for _, row, block, alive in _softmax_blocks(q, keys[b, :, k0:k1], scale, visible, offset, chunk, norm):
                share = weight[row] if alive is None else weight[row] * alive
                total[: block.shape[2]].addmv_(block.flatten(0, 1).t(), share.repeat(block.shape[0]))
            if reduce_queries == "mean":
                total.div_(weight.sum().clamp_min(1))
    return out.div_(heads) if reduce_heads == "mean" else out


@torch.no_grad()
def attention_diagonal(
    queries: Tensor, keys: Tensor, *, scale: float | None = None, cu_seqlens: Tensor | Sequence[int] | None = None
) -> Tensor:
    """The attention that every token pays to itself, averaged over heads.

    Args:
        queries, keys, scale, cu_seqlens: as of `attention_columns`, M == N, without masks.

    Returns:
        [B, N], float32 or float64.
    """
    batch, heads, n = queries.shape[:3]
    bounds = [0, n] if cu_seqlens is None else cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else cu_seqlens
    out = queries.new_zeros((batch, n), dtype=_dtype(queries, keys))
    for b in range(batch):
        for start, stop in pairwise(bounds):
            q, k, total = queries[b, :, start:stop], keys[b, :, start:stop], out[b, start:stop]
            for _, row, block, _ in _softmax_blocks(q, k, scale, None, None):
                total[row] += block.diagonal(row.start, 1, 2).sum(0)
    return out.div_(heads)


def _softmax_blocks(
    q: Tensor,
    k: Tensor,
    scale: float | None,
    visible: Tensor | None,
    limit: Tensor | int | None,
    chunk: int | None = None,
    lse: Tensor | None = None,
) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
    """Softmax attention of one sample, block by block: (query heads, query rows, probabilities, rows that count).

    q [H, M, D], k [Hkv, N, D], visible bool [N] or None. limit: the last key that a row sees, a tensor [M], or an int x
    for "row i sees keys 0..i + x" (then the block holds only the first keys, as far as its rows see any). Rows that see
    no key have arbitrary probabilities and 0 in the last value [rows], which is None when there can be none of them.
    Key heads aren't repeated: the query heads that share one are stacked as further rows of its product. lse [H, M],
    or None to have it computed.
    """
    (heads, m, dim), (heads_kv, n, _) = q.shape, k.shape
    if m == 0 or n == 0:
        return
    group, dtype = heads // heads_kv, _dtype(q, k)
    scale = dim**-0.5 if scale is None else scale
    budget = BLOCK["cpu" if q.device.type == "cpu" else "other"]
    step = min(m, chunk or max(1, GEMM_ROWS // group, budget // (group * n)))
    step_kv = min(heads_kv, max(1, budget // (group * step * n)))
    if visible is not None:
        k = k.masked_fill(~visible[:, None], 0)  # a bias of -inf would not hide NaN in padding
    room = q.new_empty(step_kv * group * step * n, dtype=dtype)  # fresh memory for each block costs page faults
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
                block = room[: part.shape[0] * part.shape[1] * seen].view(kt.shape[0], -1, seen)
                torch.bmm(part.reshape(kt.shape[0], -1, dim), kt[:, :, :seen], out=block)
            block = block.view(part.shape[0], -1, seen)
            bias, alive = _mask_bias(row, seen, visible, limit, block)
            if bias is not None:
                block.add_(bias)
            if lse is None:
                torch.softmax(block, -1, out=block)
            else:
                block.sub_(lse[head, row, None]).clamp_(max=0).exp_()
            yield head, row, block, alive


def _no_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _mask_bias(
    row: slice, width: int, visible: Tensor | None, limit: Tensor | int | None, block: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What to add to the scores of a block, [rows or 1, width] of 0 and -inf, and which rows see a key, [rows or 1].

    Rows that see none get a bias of 0, so that the softmax stays finite.
    """
    if visible is None and limit is None:
        return None, None
    allowed = None if visible is None else visible[None, :width]
    if limit is not None:
        rows = torch.arange(row.start, row.stop, device=block.device) + limit if isinstance(limit, int) else limit[row]
        past = torch.arange(width, device=block.device) <= rows[:, None]
        allowed = past if allowed is None else past & allowed
    alive = allowed.any(1)
    bias = torch.zeros(allowed.shape, dtype=block.dtype, device=block.device)
    return bias.masked_fill_(~allowed & alive[:, None], -torch.inf), alive.to(block.dtype)


def _dtype(queries: Tensor, keys: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (queries.dtype, keys.dtype) else torch.float32
