"""Bipartite matching and energy in Triton: one launch, a block of rows against all columns, tile by tile.

Rows are divided by their lengths first, in float32 (as the reference does); products are IEEE float32. What a program
keeps between tiles is one number per row (two for matching), so that nothing of the size of all pairs is ever written.
Among equals the first column wins, whatever the tiles. float64 and widths above WIDEST are the reference's.

The tests that hold it to the reference are in `tests/test_triton_matching.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

import vtc.kernels.matching.reference as reference
from vtc.kernels.matching.checks import check_energy, check_partners

ROWS, COLUMNS, STEP = 32, 32, 16  # tokens of a block, tokens of a tile, values that are multiplied at a time
WIDEST = 2**15


@triton.jit
def _tile(a, b, i, j, rows, columns, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    """Products of rows i of a and j of b [ROWS, COLUMNS]."""
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, width, STEP):
        d = start + tl.arange(0, STEP)
        inside = d < width
        x = tl.load(a + i[:, None] * width + d[None, :], mask=(i < rows)[:, None] & inside[None, :], other=0.0)
        y = tl.load(b + j[None, :] * width + d[:, None], mask=(j < columns)[None, :] & inside[:, None], other=0.0)
        sums = tl.dot(x, y, sums, input_precision="ieee")
    return sums


@triton.jit
def _partners_kernel(
    a, b, score, place, rows, columns, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr
):
    """score, place [B, rows]: the largest product of a row of a [B, rows, width] with any of b, and where."""
    unit = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    a += unit * rows * width
    b += unit * columns * width
    best, where = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.int32)
    for start in range(0, columns, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        value = _tile(a, b, i, j, rows, columns, width, ROWS, COLUMNS, STEP)
        value = tl.where((j < columns)[None, :], value, float("-inf"))
        most = tl.max(value, 1)
        at = tl.min(tl.where(value == most[:, None], j[None, :], columns), 1)
        where = tl.where(most > best, at, where)
        best = tl.maximum(most, best)
    tl.store(score + unit * rows + i, best, mask=i < rows)
    tl.store(place + unit * rows + i, where.to(tl.int64), mask=i < rows)


@triton.jit
def _energy_kernel(x, out, tokens, width, margin, alpha, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    """out [B, tokens]: the mean ELU of the products of a row of x [B, tokens, width] with all."""
    unit = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    x += unit * tokens * width
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, tokens, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        z = _tile(x, x, i, j, tokens, tokens, width, ROWS, COLUMNS, STEP) - margin
        z = tl.where(z > 0, z, alpha * (tl.exp(z) - 1))
        total += tl.sum(tl.where((j < tokens)[None, :], z, 0.0), 1)
    tl.store(out + unit * tokens + i, total / tokens, mask=i < tokens)


@torch.library.custom_op("vtc::best_partners", mutates_args=())
def _best_partners(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    units, rows, width = a.shape
    score, place = a.new_empty(units, rows), a.new_empty(units, rows, dtype=torch.long)
    if score.numel():
        with torch.cuda.device_of(a):
            _partners_kernel[(triton.cdiv(rows, ROWS), units)](
                a, b, score, place, rows, b.shape[1], width, ROWS=ROWS, COLUMNS=COLUMNS, STEP=STEP, num_warps=4
            )
    return score, place


@_best_partners.register_fake
def _(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape[:2]), a.new_empty(a.shape[:2], dtype=torch.long)


@torch.library.custom_op("vtc::matching_energy", mutates_args=())
def _energy(x: Tensor, margin: float, alpha: float) -> Tensor:
    units, tokens, width = x.shape
    out = x.new_empty(units, tokens)
    if out.numel():
        with torch.cuda.device_of(x):
            _energy_kernel[(triton.cdiv(tokens, ROWS), units)](
                x, out, tokens, width, margin, alpha, ROWS=ROWS, COLUMNS=COLUMNS, STEP=STEP, num_warps=4
            )
    return out


@_energy.register_fake
def _(x: Tensor, margin: float, alpha: float) -> Tensor:
    return x.new_empty(x.shape[:2])


def _is_ours(metric: Tensor) -> bool:
    return metric.dtype != torch.float64 and metric.shape[2] <= WIDEST


@torch.no_grad()
def best_partners(metric: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.best_partners` in one launch."""
    check_partners(metric, first, second)
    if not _is_ours(metric):
        return reference.best_partners(metric, first, second)
    unit = reference.unit_rows(metric)
    a, b = (unit.gather(1, index.unsqueeze(-1).expand(-1, -1, unit.shape[2])) for index in (first, second))
    return torch.ops.vtc.best_partners(a.contiguous(), b.contiguous())


@torch.no_grad()
def energy(metric: Tensor, margin: float, alpha: float = 1.0) -> Tensor:
    """`reference.energy` in one launch."""
    check_energy(metric)
    if not _is_ours(metric):
        return reference.energy(metric, margin, alpha)
    return torch.ops.vtc.matching_energy(reference.unit_rows(metric).contiguous(), float(margin), float(alpha))
