"""Attention reductions in Triton: what the host does. The kernels are in `columns/triton.py` and `rows/triton.py`.

Columns take two passes over tiles of q k^T: the sum of exponentials of each query, then probabilities summed over
queries for each key and head; a third kernel adds heads. Where that makes too few programs for a GPU, keys (first pass)
and queries (second) are divided into at most 8 spans, by shapes alone. Extra memory: at most 8 H (2 M + N) floats.

Rows take one pass over the keys, which writes scores [B, H, R, N] in float32, and one over the scores.

Nothing waits for the device, no sum depends on the order in which programs run, and products of float32 are exact to
float32. Autotuning may choose other tiles on another device, which changes results by rounding.
"""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from vtc.kernels.attention_reduce.checks import check_bounds, check_columns, check_rows
from vtc.kernels.attention_reduce.columns.triton import KEY_SUMS, QUERY_SUMS, add_parts, kind_of, spread_segments
from vtc.kernels.attention_reduce.rows.triton import BLOCK_N, normalize_rows, score_blocks
from vtc.kernels.transfer import upload

PROGRAMS, SPANS = 256, 8  # programs that are enough for a GPU; spans that a side is divided into at most
SCRATCH = 2**26  # scores of rows that are held at a time, at least those of one row of all heads
LOG2E = 1.4426950408889634
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
    """The attention that chosen queries pay to every key; see `reference.py`."""
    batch, heads, rows, n = check_rows(queries, keys, key_mask, causal_positions, reduce_heads)
    if causal_positions is not None:
        causal_positions = causal_positions.expand(batch, rows)
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    return _attention_rows(queries, keys, key_mask, causal_positions, scale, reduce_heads)


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
    """The attention that every key receives; see `reference.py`. chunk is ignored: tiles are the autotuner's.

    The values of a tensor cu_seqlens are not checked: they can't be read without waiting for the device. Positions
    outside of all its segments get 0.
    """
    packed = cu_seqlens is not None
    n = check_columns(queries, keys, reduce_queries, reduce_heads, query_mask, key_mask, packed, chunk, lse)[3]
    if packed and not isinstance(cu_seqlens, Tensor):
        check_bounds(cu_seqlens, n)
        cu_seqlens = torch.tensor(cu_seqlens, dtype=torch.int32)
    elif packed and (cu_seqlens.ndim != 1 or len(cu_seqlens) < 2):
        raise ValueError(f"cu_seqlens must be int [S + 1] with S >= 1, got shape {list(cu_seqlens.shape)}")
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    means = reduce_queries == "mean", reduce_heads == "mean"
    return _attention_columns(queries, keys, query_mask, key_mask, cu_seqlens, lse, scale, causal, *means)


@torch.library.custom_op("vtc::attention_rows", mutates_args=())
def _attention_rows(
    queries: Tensor, keys: Tensor, key_mask: Tensor | None, positions: Tensor | None, scale: float, reduce_heads: str
) -> Tensor:
    keep = reduce_heads == "none"
    out = _empty_rows(queries, keys, key_mask, positions, scale, reduce_heads)
    (batch, heads, rows, dim), (heads_kv, n) = queries.shape, keys.shape[1:3]
    if out.numel() == 0:
        return out
    q, k = _prepared(queries, keys)
    group, padded = heads // heads_kv, max(16, triton.next_power_of_2(dim))
    step = max(1, min(rows, SCRATCH // (batch * heads * n)))
    parts = triton.cdiv(n, BLOCK_N)
    scores = q.new_empty(batch * heads * step, n, dtype=torch.float32)
    sums = q.new_empty(2, batch * heads * step, parts, dtype=torch.float32)
    factor, negative = _factor(scale)
    block_m = min(64, max(16, triton.next_power_of_2(group * step)))
    block_h = min(32, triton.next_power_of_2(heads))
    share = 1 / heads if reduce_heads == "mean" else 1.0
    with torch.cuda.device_of(q):
        for first in range(0, rows, step):
            some, limits = q[:, :, first : first + step], positions
            limits = None if positions is None else positions[:, first : first + step]
            size, place = some.shape[2], out[..., first : first + step, :]
            score_blocks[parts * batch * heads_kv, triton.cdiv(group * size, block_m)](
                some, k, key_mask, limits, scores, sums[0], sums[1],
                *some.stride()[:3], *k.stride()[:3], *_strides(key_mask, 2), *_strides(limits, 2),
                heads_kv, group, size, n, factor, NEGATIVE=negative, D=dim, D_PAD=padded,
                WIDTH=min(padded, 32 if q.dtype == torch.float32 else 64), BLOCK_M=block_m, BLOCK_N=BLOCK_N,
                num_warps=8 if block_m == 64 else 4, num_stages=1,
            )  # fmt: skip
            normalize_rows[parts * batch * size,](
                scores, sums[0], sums[1], place, place.stride(0), place.stride(1) if keep else 0, place.stride(-2),
                heads, size, n, parts, factor, share,
                KEEP=keep, BLOCK_H=block_h, BLOCK_P=32, BLOCK_N=BLOCK_N, num_warps=4,
            )  # fmt: skip
    return out


@_attention_rows.register_fake
def _empty_rows(queries, keys, key_mask, positions, scale, reduce_heads):
    heads = (queries.shape[1],) if reduce_heads == "none" else ()
    return queries.new_empty((queries.shape[0], *heads, queries.shape[2], keys.shape[2]), dtype=torch.float32)


@torch.library.custom_op("vtc::attention_columns", mutates_args=())
def _attention_columns(
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    lse: Tensor | None,
    scale: float,
    causal: bool,
    mean_queries: bool,
    mean_heads: bool,
) -> Tensor:
    (batch, heads, m, dim), (heads_kv, n) = queries.shape, keys.shape[1:3]
    if m == 0 or n == 0 or batch * heads == 0:
        return queries.new_zeros(batch, n, dtype=torch.float32)
    q, k = _prepared(queries, keys)
    padded = max(16, triton.next_power_of_2(dim))
    kind, width = kind_of(q.dtype, padded)
    factor, negative = _factor(scale)
    strides = *q.stride()[:3], *k.stride()[:3]
    shape = heads, heads // heads_kv, m, n
    buckets = triton.next_power_of_2(m), triton.next_power_of_2(n)
    fixed = dict(CAUSAL=causal, NEGATIVE=negative, D=dim, D_PAD=padded, WIDTH=width)
    pairs, stats, parts = batch * heads, (None, None), 1
    with torch.cuda.device_of(q):
        segments = None if cu_seqlens is None else _segments(upload(cu_seqlens, q.device), query_mask, n)
        if lse is None:
            parts, span = _spans(pairs * triton.cdiv(m, 64), n)
            stats = q.new_empty(2, parts, pairs, m, dtype=torch.float32).unbind()
            QUERY_SUMS[kind][lambda meta: (triton.cdiv(m, meta["BLOCK_M"]) * pairs, parts)](
                q, k, key_mask, segments, *stats, *strides, *_strides(key_mask, 2), *shape, span, *buckets, factor,
                **fixed,
            )  # fmt: skip
        splits, span = _spans(pairs * triton.cdiv(n, 64), m)
        sums = q.new_empty(pairs, splits, n, dtype=torch.float32)
        KEY_SUMS[kind][lambda meta: (triton.cdiv(n, meta["BLOCK_N"]) * pairs, splits)](
            q, k, query_mask, key_mask, segments, *stats, lse, sums, *strides, *_strides(query_mask, 2),
            *_strides(key_mask, 2), *_strides(lse, 3), *shape, span, *buckets, factor, PARTS=parts, **fixed,
        )  # fmt: skip
        out = q.new_empty(batch, n, dtype=torch.float32)
        add_parts[triton.cdiv(n, 64), batch](
            sums, query_mask, None if segments is None else segments[2], out, *_strides(query_mask, 2),
            n, heads * splits, m, 1 / heads if mean_heads else 1.0,
            MEAN=mean_queries, BLOCK_P=32, BLOCK_N=64, BLOCK_M=1024, num_warps=4,
        )  # fmt: skip
    return out


@_attention_columns.register_fake
def _empty_columns(queries, keys, *_):
    return queries.new_empty(queries.shape[0], keys.shape[2], dtype=torch.float32)


def _prepared(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype that the kernels know, components of a head side by side; other strides as they are."""
    dtype = torch.promote_types(queries.dtype, keys.dtype)
    pair = (x.to(dtype if dtype in DTYPES else torch.float32) for x in (queries, keys))
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in pair)


def _strides(x: Tensor | None, dims: int) -> tuple[int, ...]:
    return (0,) * dims if x is None else x.stride()


def _factor(scale: float) -> tuple[float, bool]:
    """The kernels' factor of a product, above 0 so that it may meet infinity, and whether the scale is negative."""
    return max(abs(scale), 1e-30) * LOG2E, scale < 0


def _spans(programs: int, length: int) -> tuple[int, int]:
    """How many spans a side of this length is divided into, a power of two, and the length of one."""
    count = 1
    while count < SPANS and programs * count < PROGRAMS and length > 512 * count:
        count *= 2
    return count, triton.cdiv(triton.cdiv(length, count), 128) * 128


def _segments(bounds: Tensor, query_mask: Tensor | None, n: int) -> Tensor:
    """int32 [3, N]: start, end and number of queries of the segment of each position."""
    out = bounds.new_zeros(3, n, dtype=torch.int32)
    stride = 0 if query_mask is None else query_mask.stride(1)
    spread_segments[len(bounds) - 1,](bounds, query_mask, out, stride, n, BLOCK=1024, num_warps=4)
    return out
