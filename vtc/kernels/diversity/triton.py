"""Greedy diversity in Triton: one program per unit makes all picks, with one launch for all units.

The number that each token has (its distance from the picks, or its sum of cosines) stays in registers; a step reads one
row of the matrix, by the same operations in the same order as the reference, so from the same matrix the picks are the
same. Units without a matrix (see `vtc.kernels.cosine.Cosines`) and with more than LONGEST tokens are the reference's.

The tests that hold it to the reference are in `tests/test_triton_sets.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

import vtc.kernels.diversity.reference as reference
from vtc.kernels.cosine import Cosines, cosines_of

LONGEST = 16384  # tokens whose numbers fit into the registers of one program
LOWEST = torch.finfo(torch.float32).min  # the distance of excluded tokens


@triton.jit
def _second_kernel(matrix, hidden, second, tokens, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The second-largest entry of a block of rows of `matrix` [B, N, N] among the columns that are not hidden. rows: B
    times N."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    j = tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (j < tokens)[None, :]
    value = tl.load(matrix + (row * tokens)[:, None] + j[None, :], mask=mask, other=float("-inf"))
    if hidden is not None:
        hides = tl.load(hidden + (row // tokens * tokens)[:, None] + j[None, :], mask=mask, other=1)
        value = tl.where(hides != 0, float("-inf"), value)
    largest = tl.argmax(value, axis=1, tie_break_left=True)
    value = tl.where(j[None, :] == largest[:, None], float("-inf"), value)
    tl.store(second + row, tl.max(value, axis=1), mask=row < rows)


@triton.jit
def _maxmin_kernel(matrix, first, second, hidden, order, tokens, k, LOWEST: tl.constexpr, BLOCK: tl.constexpr):
    """order [B, k] of one unit. first [B], or None: by `second` [B, N]."""
    unit = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    inside = j < tokens
    matrix += unit * tokens * tokens
    distance = tl.where(inside, float("inf"), float("-inf"))
    if hidden is not None:
        hides = tl.load(hidden + unit * tokens + j, mask=inside, other=0) != 0
        distance = tl.where(hides, LOWEST, distance)
    if first is not None:
        pick = tl.load(first + unit).to(tl.int32)
        pick = tl.minimum(tl.maximum(pick, 0), tokens - 1)
    else:
        start = 1 - tl.load(second + unit * tokens + j, mask=inside, other=float("inf"))
        if hidden is not None:
            start = tl.where(hides, LOWEST, start)
        pick = tl.argmax(start, axis=0, tie_break_left=True)
    for step in range(k - 1):
        tl.store(order + unit * k + step, pick.to(tl.int64))
        row = tl.load(matrix + pick.to(tl.int64) * tokens + j, mask=inside, other=0.0)
        distance = tl.minimum(distance, 1 - row)
        distance = tl.where(j == pick, float("-inf"), distance)
        pick = tl.argmax(distance, axis=0, tie_break_left=True)
    tl.store(order + unit * k + k - 1, pick.to(tl.int64))


@triton.jit
def _maxsum_kernel(matrix, first, order, tokens, k, BLOCK: tl.constexpr):
    """order [B, k] of one unit."""
    unit = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, BLOCK)
    inside = j < tokens
    matrix += unit * tokens * tokens
    total = tl.where(inside, 0.0, float("inf"))
    pick = tl.load(first + unit).to(tl.int32)
    pick = tl.minimum(tl.maximum(pick, 0), tokens - 1)
    for step in range(k - 1):
        tl.store(order + unit * k + step, pick.to(tl.int64))
        total += tl.load(matrix + pick.to(tl.int64) * tokens + j, mask=inside, other=0.0)
        total = tl.where(j == pick, float("inf"), total)
        pick = tl.argmin(total, axis=0, tie_break_left=True)
    tl.store(order + unit * k + k - 1, pick.to(tl.int64))


def _shape(tokens: int) -> dict[str, int]:
    """The block that holds a number per token, and warps so that a thread has at most 32 of them."""
    block = max(32, triton.next_power_of_2(tokens))
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 256))}


@torch.library.custom_op("vtc::maxmin_greedy", mutates_args=())
def _maxmin(matrix: Tensor, k: int, first: Tensor | None, excluded: Tensor | None) -> Tensor:
    matrix = matrix.contiguous()
    units, tokens, _ = matrix.shape
    order = matrix.new_empty((units, k), dtype=torch.long)
    if not order.numel():
        return order
    hidden = None if excluded is None else excluded.contiguous().view(torch.uint8)
    shape, second = _shape(tokens), None
    with torch.cuda.device_of(matrix):
        if first is None:
            second = matrix.new_empty((units, tokens))
            rows = max(1, 2048 // shape["BLOCK"])
            _second_kernel[(triton.cdiv(units * tokens, rows),)](
                matrix, hidden, second, tokens, units * tokens, ROWS=rows, BLOCK=shape["BLOCK"],
                num_warps=max(4, shape["num_warps"]),
            )  # fmt: skip
        else:
            first = first.contiguous()
        _maxmin_kernel[(units,)](matrix, first, second, hidden, order, tokens, k, LOWEST=LOWEST, **shape)
    return order


@torch.library.custom_op("vtc::maxsum_greedy", mutates_args=())
def _maxsum(matrix: Tensor, k: int, first: Tensor) -> Tensor:
    matrix = matrix.contiguous()
    units, tokens, _ = matrix.shape
    order = matrix.new_empty((units, k), dtype=torch.long)
    if order.numel():
        with torch.cuda.device_of(matrix):
            _maxsum_kernel[(units,)](matrix, first.contiguous(), order, tokens, k, **_shape(tokens))
    return order


@_maxmin.register_fake
def _(matrix: Tensor, k: int, first: Tensor | None, excluded: Tensor | None) -> Tensor:
    return matrix.new_empty((matrix.shape[0], k), dtype=torch.long)


@_maxsum.register_fake
def _(matrix: Tensor, k: int, first: Tensor) -> Tensor:
    return matrix.new_empty((matrix.shape[0], k), dtype=torch.long)


def _fits(cosines: Cosines) -> bool:
    return cosines.matrix is not None and cosines.shape[1] <= LONGEST


@torch.no_grad()
def maxmin_greedy(
    features: Tensor | Cosines, k: int, *, first: Tensor | None = None, excluded: Tensor | None = None
) -> Tensor:
    """`reference.maxmin_greedy` in one launch per group of units, or two if `first` is None, beside the cosines."""
    reference.check(features, k, first, excluded)

    def choose(part: slice) -> Tensor:
        cosines = cosines_of(features, part)
        start, hidden = (None if x is None else x[part] for x in (first, excluded))
        if _fits(cosines):
            return torch.ops.vtc.maxmin_greedy(cosines.matrix, k, start, hidden)
        return reference.maxmin_greedy(cosines, k, first=start, excluded=hidden)

    return reference.by_part(choose, features, k)


@torch.no_grad()
def maxsum_greedy(features: Tensor | Cosines, first: Tensor, k: int) -> Tensor:
    """`reference.maxsum_greedy` in one launch per group of units, beside the cosines."""
    reference.check(features, k, first)

    def choose(part: slice) -> Tensor:
        cosines = cosines_of(features, part)
        if _fits(cosines):
            return torch.ops.vtc.maxsum_greedy(cosines.matrix, k, first[part])
        return reference.maxsum_greedy(cosines, first[part], k)

    return reference.by_part(choose, features, k)
