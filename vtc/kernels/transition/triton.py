"""Token transition variation in Triton, in two launches: x and y are read once, in whatever strides they have.

The first goes over the width of a block of tokens and sums x.x, y.y and x.y in float32; of each token it leaves the
change of length and exp(-c). A cosine is bounded, so the softmax needs no maximum: the second launch sums a row's
exp(-c) and divides. Tokens that are not valid are not read.

Squares are summed unscaled, as `torch.linalg.vector_norm` does: lengths above 1.8e19 overflow as in the reference. How
sums are split depends on the tile that the tuner takes, and with it the last bits of the result.

The tests that hold it to the reference are in `tests/test_triton_transition.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

import vtc.kernels.transition.reference as reference
from vtc.kernels.backend import space

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEFT_OUT = -1.0  # in the place of exp(-c): this token is not valid
ROW = 2048  # the most tokens that the second launch holds at a time

# Tokens times columns of a tile; a thread holds 16 values each of x and y, or 8 where few tokens are to fill a GPU.
TILES = [
    triton.Config({"TOKENS": 4, "COLUMNS": 512}, num_warps=4),
    triton.Config({"TOKENS": 1, "COLUMNS": 1024}, num_warps=4),
    triton.Config({"TOKENS": 16, "COLUMNS": 128}, num_warps=4),
]


@triton.autotune(configs=space(TILES), key=["WIDTH"])
@triton.jit
def _change_kernel(
    x, y, valid, length, away, tokens, width, stride_xb, stride_xs, stride_xd, stride_yb, stride_ys, stride_yd,
    stride_vb, stride_vs, EPS: tl.constexpr, LEFT_OUT: tl.constexpr, WIDTH: tl.constexpr, TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """length, away [B, S] of one block of tokens. WIDTH: the power of 2 from `width` up, which only the tuner reads."""
    blocks = tl.cdiv(tokens, TOKENS)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    s = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS).to(tl.int64)
    inside = s < tokens
    real = inside
    if valid is not None:
        real = inside & (tl.load(valid + b * stride_vb + s * stride_vs, mask=inside, other=0) != 0)
    x += b * stride_xb
    y += b * stride_yb
    entering = tl.zeros([TOKENS, COLUMNS], tl.float32)
    leaving = tl.zeros([TOKENS, COLUMNS], tl.float32)
    product = tl.zeros([TOKENS, COLUMNS], tl.float32)
    for start in range(0, width, COLUMNS):
        d = start + tl.arange(0, COLUMNS).to(tl.int64)
        mask = real[:, None] & (d < width)[None, :]
        i = tl.load(x + (s * stride_xs)[:, None] + (d * stride_xd)[None, :], mask=mask, other=0.0).to(tl.float32)
        o = tl.load(y + (s * stride_ys)[:, None] + (d * stride_yd)[None, :], mask=mask, other=0.0).to(tl.float32)
        entering += i * i
        leaving += o * o
        product += i * o
    before, after = tl.sqrt(tl.sum(entering, 1)), tl.sqrt(tl.sum(leaving, 1))
    # Not tl.maximum: it takes the number of a number and NaN.
    divisor = tl.where(before < EPS, EPS, before)
    cosine = tl.sum(product, 1) / divisor / tl.where(after < EPS, EPS, after)
    out = b * tokens + s
    tl.store(length + out, tl.where(before == 0, 0.0, after / divisor), mask=inside)
    tl.store(away + out, tl.where(real, tl.exp(-cosine), LEFT_OUT), mask=inside)


@triton.jit
def _share_kernel(length, away, out, tokens, LEFT_OUT: tl.constexpr, BLOCK: tl.constexpr):
    """One row: length times the share in the sum of what `away` holds."""
    first = tl.program_id(0).to(tl.int64) * tokens
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tokens, BLOCK):
        s = start + tl.arange(0, BLOCK)
        value = tl.load(away + first + s, mask=s < tokens, other=0.0)
        total += tl.where(value == LEFT_OUT, 0.0, value)
    whole = tl.sum(total, 0)
    for start in range(0, tokens, BLOCK):
        s = start + tl.arange(0, BLOCK)
        value = tl.load(away + first + s, mask=s < tokens, other=0.0)
        share = value / whole * tl.load(length + first + s, mask=s < tokens, other=0.0)
        tl.store(out + first + s, tl.where(value == LEFT_OUT, 0.0, share), mask=s < tokens)


@torch.library.custom_op("vtc::transition_variation", mutates_args=())
def _transition_variation(x: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
    batch, tokens, width = x.shape
    out = x.new_empty((batch, tokens), dtype=torch.float32)
    if not out.numel():
        return out
    length, away = torch.empty_like(out), torch.empty_like(out)
    real = None if valid is None else valid.view(torch.uint8)
    with torch.cuda.device_of(x):
        _change_kernel[lambda meta: (batch * triton.cdiv(tokens, meta["TOKENS"]),)](
            x, y, real, length, away, tokens, width, *x.stride(), *y.stride(),
            *((0, 0) if real is None else real.stride()), EPS=reference.EPS, LEFT_OUT=LEFT_OUT,
            WIDTH=triton.next_power_of_2(width),
        )  # fmt: skip
        block = min(ROW, max(16, triton.next_power_of_2(tokens)))
        _share_kernel[(batch,)](length, away, out, tokens, LEFT_OUT=LEFT_OUT, BLOCK=block, num_warps=4)
    return out


@_transition_variation.register_fake
def _(x: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


@torch.no_grad()
def transition_variation(x: Tensor, y: Tensor, valid: Tensor | None = None) -> Tensor:
    """`reference.transition_variation` in two launches; dtypes that are not floats are left to the reference."""
    reference.check(x, y, valid)
    if x.dtype not in DTYPES or y.dtype not in DTYPES:
        return reference.transition_variation(x, y, valid)
    return torch.ops.vtc.transition_variation(x, y, valid)
