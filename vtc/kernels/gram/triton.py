"""Cosines of all pairs of tokens in Triton: two launches, features read in their own dtype and in the strides that
units and tokens have (copied only if a token's values do not stand side by side).

The first leaves the norm of every vector, 0 where it is to count as a zero vector; such vectors are not read again, so
NaN does not spread. The second multiplies tiles on and above the diagonal, adds up in float32, divides by both norms
and stores each value on both sides of the diagonal. Products of half-precision values are exact in float32. Those of
float32 values are IEEE, on no tensor core; so are those of half-precision values whose address or width is no multiple
of 16, and all in the interpreter, which would multiply the bits of bfloat16. All configurations for a dtype go over the
width in equal steps, so that a change of tiles is not meant to change sums.

The tests that hold it to the reference are in `tests/test_triton_gram.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

import vtc.kernels.gram.reference as reference
from vtc.kernels.backend import interpreted, space

HALVES = (torch.float16, torch.bfloat16)
SMALLEST = 2.0**-126  # of a squared norm: the smallest normal float32
ALIGNED = tl.constexpr(16)  # what width, strides and address of half-precision features are to be multiples of
LONGEST = 2**15  # tokens of a unit: places in its matrix are counted in int32
GROUP = tl.constexpr(8)  # rows of tiles that run side by side: what they read of the width stays in the L2 cache


def _tiles(rows: int, columns: int, width: int, warps: int, stages: int) -> triton.Config:
    return triton.Config({"M": rows, "N": columns, "D": width}, num_warps=warps, num_stages=stages)


# Half precision: from many programs for small units to few bytes read per product for large ones. Float32 runs on the
# plain arithmetic units, whose operands fill registers: narrow steps.
TILES = [_tiles(128, 64, 64, 8, 3), _tiles(64, 64, 64, 4, 4), _tiles(128, 64, 64, 8, 4)]
FLOAT_TILES = [_tiles(64, 64, 16, 4, 3), _tiles(32, 32, 16, 4, 3)]


@triton.jit
def _norm_kernel(
    x, norm, tokens, width, rows, stride_xb, stride_xn, SMALLEST: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """norm [B, N] of a block of ROWS vectors, 0 for those that count as 0. rows: B times N."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    base = (row // tokens) * stride_xb + (row % tokens) * stride_xn
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        d = start + tl.arange(0, COLUMNS)
        mask = (row < rows)[:, None] & (d < width)[None, :]
        value = tl.load(x + base[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
        total += value * value
    square = tl.sum(total, 1)
    real = (square >= SMALLEST) & (square < float("inf"))
    tl.store(norm + row, tl.where(real, tl.sqrt(tl.where(real, square, 0.0)), 0.0), mask=row < rows)


def _gram_kernel(
    x, norm, out, tokens, width, stride_xb, stride_xn, IEEE: tl.constexpr, TOKENS: tl.constexpr,
    WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """One tile of out [B, N, N] and its mirror image. TOKENS, WIDTH: the powers of 2 from `tokens` and `width` up,
    which only the tuner reads."""
    down, across = tl.cdiv(tokens, M), tl.cdiv(tokens, N)
    unit = (tl.program_id(0) // (down * across)).to(tl.int64)
    tile = tl.program_id(0) % (down * across)
    group = tile // (GROUP * across)
    beside = tl.minimum(down - group * GROUP, GROUP)
    first = (group * GROUP + (tile % (GROUP * across)) % beside) * M
    left = ((tile % (GROUP * across)) // beside) * N
    if left + N <= first:
        return
    i, j = first + tl.arange(0, M), left + tl.arange(0, N)
    length_i = tl.load(norm + unit * tokens + i, mask=i < tokens, other=0.0)
    length_j = tl.load(norm + unit * tokens + j, mask=j < tokens, other=0.0)
    x += unit * stride_xb
    if not IEEE:  # what `_aligned` has seen, said so that the compiler sees it
        x = tl.multiple_of(x, ALIGNED)
        stride_xn, width = stride_xn // ALIGNED * ALIGNED, width // ALIGNED * ALIGNED
    base_i, base_j = x + i.to(tl.int64) * stride_xn, x + j.to(tl.int64) * stride_xn
    sums = tl.zeros([M, N], tl.float32)
    for start in range(0, width, D):
        d = start + tl.arange(0, D)
        inside = d < width
        a = tl.load(base_i[:, None] + d[None, :], mask=(length_i > 0)[:, None] & inside[None, :], other=0.0)
        b = tl.load(base_j[None, :] + d[:, None], mask=(length_j > 0)[None, :] & inside[:, None], other=0.0)
        if IEEE:
            sums = tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
        else:
            sums = tl.dot(a, b, sums)
    lengths = length_i[:, None] * length_j[None, :]
    value = sums / tl.where(lengths > 0, lengths, float("inf"))
    out += unit * tokens * tokens
    down_i, across_j = i[:, None], j[None, :]
    tl.store(out + down_i * tokens + across_j, value, mask=(down_i <= across_j) & (across_j < tokens))
    down_j, across_i = j[:, None], i[None, :]
    tl.store(out + down_j * tokens + across_i, tl.trans(value), mask=(across_i < down_j) & (down_j < tokens))


_KEY = ["TOKENS", "WIDTH"]
_half_kernel = triton.autotune(configs=space(TILES), key=_KEY)(triton.jit(_gram_kernel))
_float_kernel = triton.autotune(configs=space(FLOAT_TILES), key=_KEY)(triton.jit(_gram_kernel))


def _aligned(x: Tensor) -> bool:
    """Whether 16 values side by side can be loaded at once."""
    return not any(place % ALIGNED.value for place in (x.data_ptr(), x.shape[2], *x.stride()[:2]))


@torch.library.custom_op("vtc::cosine_matrix", mutates_args=())
def _cosine_matrix(x: Tensor) -> Tensor:
    units, tokens, width = x.shape
    out = x.new_empty((units, tokens, tokens), dtype=torch.float32)
    if not out.numel():
        return out
    x = x if x.stride(2) == 1 else x.contiguous()
    norm = x.new_empty((units, tokens), dtype=torch.float32)
    rows, columns = units * tokens, max(16, min(1024, triton.next_power_of_2(width)))
    at_once = max(1, min(16, 1024 // columns))
    ieee = x.dtype == torch.float32 or not _aligned(x) or interpreted()
    kernel = _float_kernel if ieee else _half_kernel
    with torch.cuda.device_of(x):
        _norm_kernel[(triton.cdiv(rows, at_once),)](
            x, norm, tokens, width, rows, *x.stride()[:2], SMALLEST=SMALLEST, ROWS=at_once, COLUMNS=columns, num_warps=4
        )
        kernel[lambda meta: (units * triton.cdiv(tokens, meta["M"]) * triton.cdiv(tokens, meta["N"]),)](
            x, norm, out, tokens, width, *x.stride()[:2], IEEE=ieee,
            TOKENS=triton.next_power_of_2(tokens), WIDTH=triton.next_power_of_2(max(1, width)),
        )  # fmt: skip
    return out


@_cosine_matrix.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], x.shape[1]), dtype=torch.float32)


@torch.no_grad()
def cosine_matrix(features: Tensor) -> Tensor:
    """`reference.cosine_matrix` in two launches, always float32; features of other dtypes are read as float32,
    units of more than LONGEST tokens left to the reference."""
    reference.check(features)
    if features.shape[1] > LONGEST:
        return reference.cosine_matrix(features)
    known = features.dtype in (torch.float32, *HALVES)
    return torch.ops.vtc.cosine_matrix(features if known else features.float())
