"""Triton kernels of attention rows: scores with the sums of a key block, then the softmax and the sum over heads.

The query heads that share a key head are stacked as rows of one tile, so up to 64 of them read each key once. As in
the columns, a score is `qk * factor` in units of log2 and a sum of exponentials is a pair (top, total).
"""

import triton
import triton.language as tl

from vtc.kernels.backend import interpreted

BLOCK_N = 64  # keys of a program of `score_blocks`, and so of a pair in its sums
UPCAST = tl.constexpr(interpreted())  # the interpreter would multiply the bits of bfloat16 numbers


@triton.jit(do_not_specialize=["rows", "n"])
def score_blocks(
    q, k, key_mask, positions, scores, top_out, total_out,
    q_b, q_h, q_m, k_b, k_h, k_n, key_mask_b, key_mask_n, positions_b, positions_r,
    heads_kv, group, rows, n, factor,
    NEGATIVE: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Products of stacked rows with BLOCK_N keys, -inf for keys that a row does not see, and their sums.

    One program: a key block of a key head, BLOCK_M of its group * R rows. Out: scores [B * H * R, N], sums
    [B * H * R, key blocks].
    """
    blocks = tl.cdiv(n, BLOCK_N)
    block, pair = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b, h = (pair // heads_kv).to(tl.int64), (pair % heads_kv).to(tl.int64)
    stacked = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = block * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok, col_in = stacked < group * rows, cols < n
    r = stacked % rows
    col_ok = col_in
    if key_mask is not None:
        col_ok &= tl.load(key_mask + b * key_mask_b + cols * key_mask_n, mask=col_in, other=0) != 0
    q += b * q_b + (h * group + stacked // rows)[:, None] * q_h + r.to(tl.int64)[:, None] * q_m
    k += b * k_b + h * k_h + cols.to(tl.int64)[:, None] * k_n
    qk = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32)
    for start in range(0, D_PAD, WIDTH):
        column = (start + tl.arange(0, WIDTH))[None, :]
        left = tl.load(q + column, mask=row_ok[:, None] & (column < D), other=0.0)
        right = tl.load(k + column, mask=col_ok[:, None] & (column < D), other=0.0)
        if UPCAST:
            left, right = left.to(tl.float32), right.to(tl.float32)
        qk = tl.dot(left, tl.trans(right), qk, input_precision="ieee")
    if NEGATIVE:
        qk = -qk
    seen = col_ok[None, :]
    if positions is not None:
        last = tl.load(positions + b * positions_b + r * positions_r, mask=row_ok, other=-1)
        seen = seen & (cols[None, :] <= last[:, None])
    qk = tl.where(seen, qk, float("-inf"))
    top = tl.max(qk, 1)
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2((qk - shift[:, None]) * factor), 1)
    row = pair.to(tl.int64) * group * rows + stacked
    tl.store(scores + row[:, None] * n + cols[None, :], qk, mask=row_ok[:, None] & col_in[None, :])
    tl.store(top_out + row * blocks + block, top, mask=row_ok)
    tl.store(total_out + row * blocks + block, total, mask=row_ok)


@triton.jit(do_not_specialize=["rows", "n", "parts"])
def normalize_rows(
    scores, top_in, total_in, out, out_b, out_h, out_r, heads, rows, n, parts, factor, share,
    KEEP: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Softmax of scores [B * H * R, N] by their sums [B * H * R, parts], times share, summed over heads unless KEEP.

    One program: BLOCK_N keys of one row of all heads. Out: [B, R, N], or [B, H, R, N] to KEEP heads.
    """
    blocks = tl.cdiv(n, BLOCK_N)
    cols = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    which = tl.program_id(0) // blocks
    b, r = (which // rows).to(tl.int64), (which % rows).to(tl.int64)
    col_ok = cols < n
    out += b * out_b + r * out_r + cols
    summed = tl.full([BLOCK_N], 0, tl.float32)
    for first in range(0, heads, BLOCK_H):
        h = first + tl.arange(0, BLOCK_H)
        head_ok = h < heads
        row = (b * heads + h) * rows + r
        top = tl.full([BLOCK_H], float("-inf"), tl.float32)
        total = tl.full([BLOCK_H], 0, tl.float32)
        for start in range(0, parts, BLOCK_P):
            part = start + tl.arange(0, BLOCK_P)
            at = row[:, None] * parts + part[None, :]
            ok = head_ok[:, None] & (part < parts)[None, :]
            tops = tl.load(top_in + at, mask=ok, other=float("-inf"))
            higher = tl.maximum(top, tl.max(tops, 1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            totals = tl.load(total_in + at, mask=ok, other=0.0) * tl.exp2((tops - shift[:, None]) * factor)
            total = total * tl.exp2((top - shift) * factor) + tl.sum(totals, 1)
            top = higher
        shift = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.where(total == 0, 0.0, share / tl.where(total == 0, 1.0, total))
        ok = head_ok[:, None] & col_ok[None, :]
        qk = tl.load(scores + row[:, None] * n + cols[None, :], mask=ok, other=float("-inf"))
        p = tl.exp2((qk - shift[:, None]) * factor) * weight[:, None]
        if KEEP:
            tl.store(out[None, :] + h.to(tl.int64)[:, None] * out_h, p, mask=ok)
        else:
            summed += tl.sum(p, 0)
    if not KEEP:
        tl.store(out, summed, mask=col_ok)
