"""Greedy coverage in Triton: one program per unit makes all picks lazily, with one launch for all units.

Gains of earlier steps are upper bounds, as in the lazy form of the reference, and stay in registers. They are laid out
in LANES groups, token j in group j mod LANES. A step looks, in every group at once, for the largest bound that is not
up to date, renews those of them that could still be the pick, all LANES in one tile that goes over the rows, and ends
when none could: the pick is exactly that of a loop that renews everything.

All gains come out of one piece of code that adds up in one order, so bounds hold bit by bit and equal candidates tie
exactly. Only the bounds before the first step are torch's sums, which add up in another order; they are raised by
SLACK, more than that can differ by. Sums round otherwise than the reference's, so two candidates whose gains differ by
rounding may change places.

The tests that hold it to the reference are in `tests/test_triton_sets.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

import vtc.kernels.coverage.reference as reference

LONGEST = 16384  # tokens whose bounds fit into the registers of one program
LANES = 16  # candidates whose gains are renewed together
SLACK = 1e-4  # relative; sums of up to 2**24 numbers that are not negative, in blocks, are far closer
HIDDEN = tl.constexpr(reference.HIDDEN)
NONE = tl.constexpr(2**30)  # an index after all others


@triton.jit
def _contenders(stale, best, pick, LANES: tl.constexpr):
    """The token of each group with the largest bound that is not up to date [LANES], and whether it could be picked
    before `pick`, whose gain is `best`."""
    top, at = tl.max(stale, axis=1, return_indices=True, return_indices_tie_break_left=True)
    token = at * LANES + tl.arange(0, LANES)
    return token, (top >= 0) & ((top > best) | ((top == best) & (token < pick)))


@triton.jit
def _coverage_kernel(
    rows, bound, hidden, covered, order, tokens, length, k, LANES: tl.constexpr, WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """order [B, k] of one unit from rows [B, N, R]. bound [B, N]: no less than each gain before the first step;
    covered [B, R]: zeros, changed in place."""
    unit = tl.program_id(0).to(tl.int64)
    rows += unit * tokens * length
    covered += unit * length
    lane = tl.arange(0, LANES)
    index = tl.arange(0, WIDTH)[None, :] * LANES + lane[:, None]
    upper = tl.load(bound + unit * tokens + index, mask=index < tokens, other=float("-inf"))
    upper = tl.where(index < tokens, tl.where(upper > 0, upper, 0.0), float("-inf"))  # NaN counts as 0
    if hidden is not None:
        hides = tl.load(hidden + unit * tokens + index, mask=index < tokens, other=0) != 0
        upper = tl.where(hides, HIDDEN, upper)
    for step in range(k):
        best = tl.full([], float("-inf"), tl.float32)
        pick = tl.full([], NONE, tl.int32)
        if hidden is not None:
            pick = tl.min(tl.min(tl.where(upper == HIDDEN, index, NONE), axis=1), axis=0)
            best = tl.where(pick < NONE, HIDDEN, best)
        stale = upper
        token, wanted = _contenders(stale, best, pick, LANES)
        going = tl.max(wanted.to(tl.int32), axis=0)
        while going > 0:
            base = rows + token.to(tl.int64) * length
            total = tl.zeros([LANES, COLUMNS], tl.float32)
            for start in range(0, length, COLUMNS):
                r = start + tl.arange(0, COLUMNS)
                before = tl.load(covered + r, mask=r < length, other=0.0)
                mask = wanted[:, None] & (r < length)[None, :]
                weight = tl.load(base[:, None] + r[None, :], mask=mask, other=0.0)
                more = weight - before[None, :]
                total += tl.where(more > 0, more, 0.0)
            gain = tl.sum(total, axis=1)
            renewed = wanted[:, None] & (index == token[:, None])
            upper = tl.where(renewed, gain[:, None], upper)
            stale = tl.where(renewed, float("-inf"), stale)
            value = tl.max(tl.where(wanted, gain, -2.0), axis=0)
            first = tl.min(tl.where(wanted & (gain == value), token, NONE), axis=0)
            ahead = (value > best) | ((value == best) & (first < pick))
            pick = tl.where(ahead, first, pick)
            best = tl.where(ahead, value, best)
            token, wanted = _contenders(stale, best, pick, LANES)
            going = tl.max(wanted.to(tl.int32), axis=0)
        tl.store(order + unit * k + step, pick.to(tl.int64))
        upper = tl.where(index == pick, float("-inf"), upper)
        tl.debug_barrier()  # every thread has read what is covered
        chosen = rows + pick.to(tl.int64) * length
        for start in range(0, length, COLUMNS):
            r = start + tl.arange(0, COLUMNS)
            before = tl.load(covered + r, mask=r < length, other=0.0)
            weight = tl.load(chosen + r, mask=r < length, other=0.0)
            tl.store(covered + r, tl.where(weight > before, weight, before), mask=r < length)
        tl.debug_barrier()  # other threads read it in the next step


@torch.library.custom_op("vtc::coverage_greedy", mutates_args=())
def _coverage(rows: Tensor, k: int, excluded: Tensor | None) -> Tensor:
    rows = rows.contiguous()
    units, tokens, length = rows.shape
    order = rows.new_empty((units, k), dtype=torch.long)
    if not order.numel():
        return order
    bound = rows.sum(2).mul_(1 + SLACK)
    hidden = None if excluded is None else excluded.contiguous().view(torch.uint8)
    width = max(2, triton.next_power_of_2(tokens) // LANES)
    columns = max(16, min(256 if width > 256 else 512, triton.next_power_of_2(max(1, length))))
    with torch.cuda.device_of(rows):
        _coverage_kernel[(units,)](
            rows, bound, hidden, rows.new_zeros((units, length)), order, tokens, length, k, LANES=LANES, WIDTH=width,
            COLUMNS=columns, num_warps=16 if width > 256 else 8,
        )  # fmt: skip
    return order


@_coverage.register_fake
def _(rows: Tensor, k: int, excluded: Tensor | None) -> Tensor:
    return rows.new_empty((rows.shape[0], k), dtype=torch.long)


@torch.no_grad()
def coverage_greedy(
    weights: Tensor,
    k: int,
    *,
    excluded: Tensor | None = None,
    method: str | None = None,
    quality: Tensor | None = None,
    combine: str = "multi",
) -> Tensor:
    """`reference.coverage_greedy` in one launch for all units, beside their sums; `method` is checked and makes no
    difference. Units with more than LONGEST tokens, and choices with a quality, are the reference's."""
    reference.check(weights, k, excluded, method, quality, combine)
    if quality is not None or weights.shape[2] > LONGEST:
        return reference.coverage_greedy(weights, k, excluded=excluded, method=method, quality=quality, combine=combine)
    return torch.ops.vtc.coverage_greedy(reference.candidate_major(weights), k, excluded)
