"""Triton kernels of sums over attention columns, in two passes over tiles of q k^T; nothing [M, N] is stored.

A score is `qk * factor` in units of log2, factor > 0; NEGATIVE turns the sign of qk. A sum of exponentials is kept as a
pair: `top`, the largest qk, and `total`, the sum of exp2((qk - top) * factor). Where scores are large, qk - top is
exact for those that matter, and a logarithm subtracted from a rounded product is not.

Probabilities stay in float32 from the product to the sum, and each sum has a fixed order.
"""

import torch
import triton
import triton.language as tl

from vtc.kernels.backend import interpreted, space

LOG2E = tl.constexpr(1.4426950408889634)
UPCAST = tl.constexpr(interpreted())  # the interpreter would multiply the bits of bfloat16 numbers
SIZES = ["m", "n", "span", "m_bucket", "n_bucket"]  # a new value compiles nothing


@triton.jit
def _tile(base, stride, index, ok, start, WIDTH: tl.constexpr, D: tl.constexpr):
    """Columns start.. of the rows `index` of a matrix [*, D]: [rows, WIDTH], 0 beyond D and where not ok."""
    column = start + tl.arange(0, WIDTH)
    inside = ok[:, None] & (column < D)[None, :]
    tile = tl.load(base + index.to(tl.int64)[:, None] * stride + column[None, :], mask=inside, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def _products(
    left, right, q, q_m, rows, row_ok, k, k_n, cols, col_ok,
    NEGATIVE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """q k^T in float32 [rows, cols]: of the tiles left and right where these are whole rows (WIDTH == D_PAD), else
    WIDTH columns at a time, because exact float32 products hold their operands in registers."""
    if WIDTH == D_PAD:
        qk = tl.dot(left, tl.trans(right), input_precision="ieee")
    else:
        qk = tl.full([rows.shape[0], cols.shape[0]], 0, tl.float32)
        for start in range(0, D_PAD, WIDTH):
            a = _tile(q, q_m, rows, row_ok, start, WIDTH, D)
            b = _tile(k, k_n, cols, col_ok, start, WIDTH, D)
            qk = tl.dot(a, tl.trans(b), qk, input_precision="ieee")
    return -qk if NEGATIVE else qk


@triton.jit(do_not_specialize=SIZES)
def query_sums(
    q, k, key_mask, segments, top_out, total_out,
    q_b, q_h, q_m, k_b, k_h, k_n, key_mask_b, key_mask_n,
    heads, group, m, n, span, m_bucket, n_bucket, factor,
    CAUSAL: tl.constexpr, NEGATIVE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pass 1 over columns: `top` and `total` of each query over `span` keys. One program: BLOCK_M queries of a head.

    segments: int32 [2, N], where the segment of each position starts and ends, or None. Out: [splits, B * H, M].
    """
    blocks = tl.cdiv(m, BLOCK_M)
    bh = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_M
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q += b * q_b + h * q_h
    k += b * k_b + h // group * k_h
    rows = first + tl.arange(0, BLOCK_M)
    row_ok = rows < m
    low = tl.program_id(1) * span
    high = tl.minimum(low + span, n)
    if segments is not None:
        begin = tl.load(segments + rows, mask=row_ok, other=0)
        end = tl.load(segments + n + rows, mask=row_ok, other=0)
        low = tl.maximum(low, tl.load(segments + first))
        high = tl.minimum(high, tl.load(segments + n + tl.minimum(first + BLOCK_M, m) - 1))
    if CAUSAL:
        high = tl.minimum(high, first + BLOCK_M + n - m)
    whole = _tile(q, q_m, rows, row_ok, 0, WIDTH, D)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.full([BLOCK_M], 0, tl.float32)
    for start in range(low, high, BLOCK_N):
        cols = start + tl.arange(0, BLOCK_N)
        col_ok = cols < high
        if key_mask is not None:
            col_ok &= tl.load(key_mask + b * key_mask_b + cols * key_mask_n, mask=col_ok, other=0) != 0
        tile = _tile(k, k_n, cols, col_ok, 0, WIDTH, D)
        qk = _products(whole, tile, q, q_m, rows, row_ok, k, k_n, cols, col_ok, NEGATIVE, D, D_PAD, WIDTH)
        seen = col_ok[None, :]
        if segments is not None:
            seen = seen & (cols[None, :] >= begin[:, None]) & (cols[None, :] < end[:, None])
        if CAUSAL:
            seen = seen & (cols[None, :] <= rows[:, None] + (n - m))
        qk = tl.where(seen, qk, float("-inf"))
        higher = tl.maximum(top, tl.max(qk, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf is no number
        total = total * tl.exp2((top - shift) * factor) + tl.sum(tl.exp2((qk - shift[:, None]) * factor), 1)
        top = higher
    count = tl.num_programs(0) // blocks  # B * H
    at = (tl.program_id(1).to(tl.int64) * count + bh) * m + rows
    tl.store(top_out + at, top, mask=row_ok)
    tl.store(total_out + at, total, mask=row_ok)


@triton.jit
def _norm(top_in, total_in, at, step, ok, factor, PARTS: tl.constexpr):
    """`top` of queries over all keys and 1 / `total`, from the sums of PARTS spans; inf and 0 for those that count for
    nothing (not ok, or no key seen), so that their probabilities are 0."""
    top = tl.load(top_in + at, mask=ok, other=float("-inf"))
    for i in tl.static_range(1, PARTS):
        top = tl.maximum(top, tl.load(top_in + i * step + at, mask=ok, other=float("-inf")))
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.full(top.shape, 0, tl.float32)
    for i in tl.static_range(PARTS):
        part = tl.load(top_in + i * step + at, mask=ok, other=float("-inf"))
        total += tl.load(total_in + i * step + at, mask=ok, other=0.0) * tl.exp2((part - shift) * factor)
    alive = total > 0
    return tl.where(alive, top, float("inf")), tl.where(alive, 1 / tl.where(alive, total, 1.0), 0.0)


@triton.jit(do_not_specialize=SIZES)
def key_sums(
    q, k, query_mask, key_mask, segments, top_in, total_in, lse, out,
    q_b, q_h, q_m, k_b, k_h, k_n, query_mask_b, query_mask_n, key_mask_b, key_mask_n, lse_b, lse_h, lse_m,
    heads, group, m, n, span, m_bucket, n_bucket, factor,
    CAUSAL: tl.constexpr, NEGATIVE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WIDTH: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pass 2 over columns: probabilities summed over `span` queries. One program: BLOCK_N keys, for one query head.

    Norms come from pass 1 (top_in, total_in) or from lse, the other is None. Out: [B, H, splits, N].
    """
    blocks = tl.cdiv(n, BLOCK_N)
    bh = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * BLOCK_N
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q += b * q_b + h * q_h
    k += b * k_b + h // group * k_h
    step = (tl.num_programs(0) // blocks).to(tl.int64) * m
    cols = first + tl.arange(0, BLOCK_N)
    col_ok = cols < n
    low = tl.program_id(1) * span
    high = tl.minimum(low + span, m)
    if segments is not None:
        begin = tl.load(segments + cols, mask=col_ok, other=0)
        end = tl.load(segments + n + cols, mask=col_ok, other=0)
        low = tl.maximum(low, tl.load(segments + first))
        high = tl.minimum(high, tl.load(segments + n + tl.minimum(first + BLOCK_N, n) - 1))
    if CAUSAL:
        low = tl.maximum(low, first + m - n)
    if key_mask is not None:
        col_ok &= tl.load(key_mask + b * key_mask_b + cols * key_mask_n, mask=col_ok, other=0) != 0
    whole = _tile(k, k_n, cols, col_ok, 0, WIDTH, D)
    sums = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32)
    for start in range(low, high, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        row_ok = rows < high
        if query_mask is not None:
            row_ok &= tl.load(query_mask + b * query_mask_b + rows * query_mask_n, mask=row_ok, other=0) != 0
        tile = _tile(q, q_m, rows, row_ok, 0, WIDTH, D)
        qk = _products(tile, whole, q, q_m, rows, row_ok, k, k_n, cols, col_ok, NEGATIVE, D, D_PAD, WIDTH)
        if lse is not None:
            at = lse + b * lse_b + h * lse_h + rows.to(tl.int64) * lse_m
            shift = tl.load(at, mask=row_ok, other=float("inf")) * LOG2E
            p = tl.exp2(tl.minimum(qk * factor - shift[:, None], 0.0))
        else:
            at = bh.to(tl.int64) * m + rows
            top, weight = _norm(top_in, total_in, at, step, row_ok, factor, PARTS)
            p = tl.exp2(tl.minimum((qk - top[:, None]) * factor, 0.0)) * weight[:, None]
        if segments is not None:
            p = tl.where((rows[:, None] >= begin[None, :]) & (rows[:, None] < end[None, :]), p, 0.0)
        if CAUSAL:
            p = tl.where(cols[None, :] <= rows[:, None] + (n - m), p, 0.0)
        sums += p
    received = tl.where(col_ok, tl.sum(sums, 0), 0.0)
    at = (bh.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * n + cols
    tl.store(out + at, received, mask=cols < n)


@triton.jit(do_not_specialize=["n", "parts", "m"])
def add_parts(
    parts_in, query_mask, counts, out, query_mask_b, query_mask_n, n, parts, m, share,
    MEAN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sums [B, parts, N] over parts, times share; for a MEAN divided by the queries that count: by counts [N] (of
    packed segments), or by those in query_mask, or by m."""
    b = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_ok = cols < n
    total = tl.full([BLOCK_N], 0, tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        at = (b * parts + part[:, None]) * n + cols[None, :]
        total += tl.sum(tl.load(parts_in + at, mask=(part < parts)[:, None] & col_ok[None, :], other=0.0), 0)
    total *= share
    if MEAN:
        if counts is not None:
            total = total / tl.maximum(tl.load(counts + cols, mask=col_ok, other=1), 1).to(tl.float32)
        elif query_mask is not None:
            chosen = tl.full([BLOCK_M], 0, tl.int32)
            for start in range(0, m, BLOCK_M):
                rows = start + tl.arange(0, BLOCK_M)
                at = query_mask + b * query_mask_b + rows * query_mask_n
                chosen += (tl.load(at, mask=rows < m, other=0) != 0).to(tl.int32)
            total = total / tl.maximum(tl.sum(chosen, 0), 1).to(tl.float32)
        else:
            total = total / m.to(tl.float32)
    tl.store(out + b * n + cols, total, mask=col_ok)


@triton.jit(do_not_specialize=["n"])
def spread_segments(bounds, query_mask, out, query_mask_n, n, BLOCK: tl.constexpr):
    """Writes out int32 [3, N] for one segment: its start, its end and its number of queries, at each of its positions.

    bounds: int [S + 1]; whatever they hold, positions stay within 0..N.
    """
    start = tl.minimum(tl.maximum(tl.load(bounds + tl.program_id(0)), 0), n).to(tl.int32)
    end = tl.minimum(tl.maximum(tl.load(bounds + tl.program_id(0) + 1), 0), n).to(tl.int32)
    count = tl.maximum(end - start, 0)
    if query_mask is not None:
        chosen = tl.full([BLOCK], 0, tl.int32)
        for i in range(start, end, BLOCK):
            at = i + tl.arange(0, BLOCK)
            chosen += (tl.load(query_mask + at * query_mask_n, mask=at < end, other=0) != 0).to(tl.int32)
        count = tl.sum(chosen, 0)
    for i in range(start, end, BLOCK):
        at = i + tl.arange(0, BLOCK)
        tl.store(out + at, tl.full([BLOCK], 0, tl.int32) + start, mask=at < end)
        tl.store(out + n + at, tl.full([BLOCK], 0, tl.int32) + end, mask=at < end)
        tl.store(out + 2 * n + at, tl.full([BLOCK], 0, tl.int32) + count, mask=at < end)


def _tuned(kernel, *sizes: tuple[int, int, int, int]):
    """The kernel with the autotuner's choice of (BLOCK_M, BLOCK_N, warps, stages); sizes count by powers of two."""
    configs = [triton.Config(dict(BLOCK_M=m, BLOCK_N=n), num_warps=w, num_stages=s) for m, n, w, s in sizes]
    return triton.autotune(space(configs), key=["m_bucket", "n_bucket", "CAUSAL", "D_PAD"])(kernel)


def _kinds(kernel, wide_warps: int) -> dict:
    """By how a tile fits: heads of up to 128 in 16 bits, up to 256, and what is multiplied a few columns at a time.

    The sizes are the largest that hardly spill registers on sm_80 and sm_90 (24 bytes at most), also for odd strides.
    """
    return {
        "narrow": _tuned(kernel, (64, 64, 4, 3), (128, 64, 8, 3), (64, 128, wide_warps, 3)),
        "wide": _tuned(kernel, (64, 64, 4, 2), (128, 64, 8, 2)),
        "parts": _tuned(kernel, (64, 64, 8, 1), (32, 64, 4, 1)),
    }


QUERY_SUMS = _kinds(query_sums, 4)
KEY_SUMS = _kinds(key_sums, 8)  # it holds a tile of sums beside the products


def kind_of(dtype: torch.dtype, padded: int) -> tuple[str, int]:
    """Which of the kinds multiplies heads of this padded width, and how many columns at a time."""
    if dtype == torch.float32:
        return "parts", min(padded, 32)
    if padded > 256:
        return "parts", 32
    return ("wide" if padded > 128 else "narrow"), padded
