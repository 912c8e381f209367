"""Greedy DPP choice in Triton: one program per unit makes all picks, with one launch for all units.

A step goes over the tokens block by block: it subtracts what the factor already explains from the pick's row of K,
writes the factor's next row, lowers the rest of the determinants, and looks for the largest of them, which is the next
pick. Factor and rest are in memory (in a GPU's cache, unless units are very long), so registers set no limit. Units
without a matrix (see `vtc.kernels.cosine.Cosines`) are the reference's.

The tests that hold it to the reference are in `tests/test_triton_sets.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

import vtc.kernels.dpp.reference as reference
from vtc.kernels.cosine import Cosines, units_at_once

TAKEN = tl.constexpr(float("-inf"))  # in the place of the rest of a token that is picked
OLDER = 16  # rows of the factor that are read at once


@triton.jit
def _largest(rest, floor, inside, start):
    """(value, index) of the largest gain of a block of tokens that begins at `start`, the first of equal ones."""
    gain = tl.where(rest > floor, rest, 0.0)
    gain = tl.where(rest == TAKEN, -1.0, gain)
    value, at = tl.max(tl.where(inside, gain, -2.0), axis=0, return_indices=True, return_indices_tie_break_left=True)
    return value, at + start


@triton.jit
def _dpp_kernel(matrix, quality, floor, rest, factor, order, tokens, k, OLDER: tl.constexpr, BLOCK: tl.constexpr):
    """order [B, k] of one unit. rest, floor [B, N]: what is left of the determinants, changed in place, and what of it
    is rounding; factor [B, k, N]: scratch."""
    unit = tl.program_id(0).to(tl.int64)
    matrix += unit * tokens * tokens
    quality += unit * tokens
    floor += unit * tokens
    rest += unit * tokens
    factor += unit * tokens * k
    order += unit * k
    written = factor
    best = tl.full([], -2.0, tl.float32)
    pick = tl.full([], 0, tl.int32)
    for start in range(0, tokens, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < tokens
        left = tl.load(rest + j, mask=inside, other=0.0)
        value, at = _largest(left, tl.load(floor + j, mask=inside, other=0.0), inside, start)
        pick = tl.where(value > best, at, pick)
        best = tl.where(value > best, value, best)
    for step in range(k - 1):
        tl.store(order + step, pick.to(tl.int64))
        row = pick.to(tl.int64) * tokens
        scale = tl.load(quality + pick)
        root = tl.sqrt(tl.where(best > 0, best, 1.0))
        next_best = tl.full([], -2.0, tl.float32)
        next_pick = tl.full([], 0, tl.int32)
        for start in range(0, tokens, BLOCK):
            j = start + tl.arange(0, BLOCK)
            inside = j < tokens
            explained = tl.zeros([OLDER, BLOCK], tl.float32)
            for begin in range(0, step, OLDER):
                i = (begin + tl.arange(0, OLDER)).to(tl.int64)
                weight = tl.load(factor + i * tokens + pick, mask=i < step, other=0.0)
                mask = (i < step)[:, None] & inside[None, :]
                known = tl.load(factor + (i * tokens)[:, None] + j[None, :], mask=mask, other=0.0)
                explained += weight[:, None] * known
            new = tl.load(matrix + row + j, mask=inside, other=0.0) * tl.load(quality + j, mask=inside, other=0.0)
            new = new * scale - tl.sum(explained, axis=0)
            new = tl.where(best > 0, new / root, 0.0)
            tl.store(written + j, new, mask=inside)
            left = tl.load(rest + j, mask=inside, other=0.0)
            left = tl.where(j == pick, TAKEN, left - new * new)
            tl.store(rest + j, left, mask=inside)
            value, at = _largest(left, tl.load(floor + j, mask=inside, other=0.0), inside, start)
            next_pick = tl.where(value > next_best, at, next_pick)
            next_best = tl.where(value > next_best, value, next_best)
        tl.debug_barrier()  # other threads read the factor in the next step
        written += tokens
        pick, best = next_pick, next_best
    tl.store(order + k - 1, pick.to(tl.int64))


@torch.library.custom_op("vtc::dpp_greedy", mutates_args=())
def _dpp(matrix: Tensor, quality: Tensor, k: int) -> Tensor:
    matrix = matrix.contiguous()
    units, tokens, _ = matrix.shape
    order = matrix.new_empty((units, k), dtype=torch.long)
    if not order.numel():
        return order
    quality = quality.contiguous()
    rest = quality.square() * (matrix.diagonal(dim1=1, dim2=2) > 0)
    floor = rest * (reference.DEPENDENT * torch.finfo(torch.float32).eps)
    block = max(32, min(512, triton.next_power_of_2(tokens)))
    with torch.cuda.device_of(matrix):
        _dpp_kernel[(units,)](
            matrix, quality, floor, rest, matrix.new_empty((units, k, tokens)), order, tokens, k, OLDER=OLDER,
            BLOCK=block, num_warps=max(1, block // 64),
        )  # fmt: skip
    return order


@_dpp.register_fake
def _(matrix: Tensor, quality: Tensor, k: int) -> Tensor:
    return matrix.new_empty((matrix.shape[0], k), dtype=torch.long)


@torch.no_grad()
def dpp_greedy(features: Tensor | Cosines, quality: Tensor, k: int) -> Tensor:
    """`reference.dpp_greedy` in one launch per group of units, beside the cosines and three sums over [B, N]."""
    reference.check(features, quality, k)
    if isinstance(features, Cosines):
        return _choose(features, quality.float(), k)
    units, size = features.shape[0], units_at_once(features)
    order = torch.empty(units, k, dtype=torch.long, device=features.device)
    for b in range(0, units if k else 0, size):
        part = slice(b, b + size)
        order[part] = _choose(Cosines(features[part]), quality[part].float(), k)
    return order


def _choose(cosines: Cosines, quality: Tensor, k: int) -> Tensor:
    if cosines.matrix is None:
        return reference.choose(cosines, quality, k)
    return torch.ops.vtc.dpp_greedy(cosines.matrix, quality, k)
