"""Top-k and gather in Triton: no sort; the k-th largest score of a row is found by counting.

A score becomes an unsigned integer of as many bits that orders as the reference does. Two bits at a time, from the
highest, the k-th largest of these is found: the numbers of keys that reach each of three candidates are counted in one
sum. What lies above is kept, and of the equal ones the first; a prefix sum of what is kept gives each its place. All of
it is integer arithmetic, so indices are the reference's exactly, on every device.

A program holds the first HELD scores of its row in registers; what is beyond is read again for each two bits.

The tests that hold it to the reference are in `tests/test_triton_topk.py`.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

import vtc.kernels.topk.reference as reference
from vtc.kernels.backend import space

HELD = 4096  # scores of a row in registers, up to 16 a thread
LONGEST = 2**20 - 1  # scores of a row that are counted in 20 bits; longer rows go to the reference
FORMATS = {torch.float32: (32, 0x7F800000), torch.float16: (16, 0x7C00), torch.bfloat16: (16, 0x7F80)}  # bits, infinity
MOVED = (*FORMATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)  # what can be gathered


@triton.jit
def _keys(scores, stride, at, n, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """The scores at places `at` of a row of n as uint32 that order as they do; beyond the row 0, which no score has."""
    SIGN: tl.constexpr = 1 << (BITS - 1)
    value = tl.load(scores + at.to(tl.int64) * stride, mask=at < n, other=0.0)
    if BITS == 32:
        bits = value.to(tl.uint32, bitcast=True)
    else:
        bits = value.to(tl.uint16, bitcast=True).to(tl.uint32)
    size = bits & (SIGN - 1)
    key = tl.where(bits >= SIGN, SIGN - size, SIGN + size)  # -0.0 and 0.0 are both SIGN
    key = tl.where(size > INFINITY, SIGN + INFINITY + 1, key)  # one key for all NaNs
    return tl.where(at < n, key, 0).to(tl.uint32)


@triton.jit
def _reaching(key, kth, unit):
    """How many keys reach kth + 1, 2 and 3 units: three counts in one number, 20 bits each, the first the lowest."""
    reach = (key >= kth + unit).to(tl.int64)
    reach += (key >= kth + 2 * unit).to(tl.int64) << 20
    reach += (key >= kth + 3 * unit).to(tl.int64) << 40
    return tl.sum(reach, 0)


@triton.jit
def _threshold(scores, stride, n, k, BLOCK: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """The k-th largest key of a row, and how many keys are above it."""
    held = _keys(scores, stride, tl.arange(0, BLOCK), n, BITS, INFINITY)
    kth = tl.full([], 0, tl.uint32)
    unit = tl.full([], 1 << (BITS - 2), tl.uint32)
    above = tl.full([], 0, tl.int64)
    for _ in range(BITS // 2):
        counts = _reaching(held, kth, unit)
        for start in range(BLOCK, n, BLOCK):
            more = _keys(scores, stride, start + tl.arange(0, BLOCK), n, BITS, INFINITY)
            counts += _reaching(more, kth, unit)
        one, two, three = counts & 0xFFFFF, (counts >> 20) & 0xFFFFF, counts >> 40
        above = tl.where(one < k, one, tl.where(two < k, two, tl.where(three < k, three, above)))
        kth += ((one >= k).to(tl.uint32) + (two >= k).to(tl.uint32) + (three >= k).to(tl.uint32)) * unit
        unit = unit >> 2
    return kth, above.to(tl.int32)


@triton.jit
def _select(key, kth, wanted, above_before, equal_before):
    """Which keys are kept and their places among all that are, and how many up to here are above kth and equal to it.

    wanted: how many of those equal to kth are kept, the first; *_before: how many there were in the blocks before.
    """
    above, equal = (key > kth).to(tl.int32), (key == kth).to(tl.int32)
    so_far = tl.cumsum(above + (equal << 16), 0)  # two counts in one number
    order = ((so_far >> 16) & 0xFFFF) + equal_before
    keep = (above > 0) | ((equal > 0) & (order <= wanted))
    slot = (so_far & 0xFFFF) + above_before + tl.minimum(order, wanted) - 1
    return keep, slot, above_before + tl.sum(above, 0), equal_before + tl.sum(equal, 0)


@triton.jit
def _topk_kernel(
    scores, out, n, k, stride_b, stride_n, BLOCK: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr
):  # fmt: skip
    """One row."""
    b = tl.program_id(0).to(tl.int64)
    scores += b * stride_b
    out += b * k
    kth, reached = _threshold(scores, stride_n, n, k, BLOCK, BITS, INFINITY)
    above, equal = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        key = _keys(scores, stride_n, at, n, BITS, INFINITY)
        keep, slot, above, equal = _select(key, kth, k - reached, above, equal)
        tl.store(out + slot, at.to(tl.int64), mask=keep)


@triton.jit
def _packed_kernel(
    scores, table, positions, out, out_positions, segments, rows, kept, stride_t, stride_row, stride_position,
    BLOCK: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr,
):  # fmt: skip
    """One segment. table: [4, segments], its start, its length, how many it keeps, and how many those before keep."""
    s = tl.program_id(0)
    first, n = tl.load(table + s), tl.load(table + segments + s).to(tl.int32)
    k, before = tl.load(table + 2 * segments + s).to(tl.int32), tl.load(table + 3 * segments + s)
    scores += first * stride_t
    kth, reached = _threshold(scores, stride_t, n, k, BLOCK, BITS, INFINITY)
    above, equal = tl.full([], 0, tl.int32), tl.full([], 0, tl.int32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        key = _keys(scores, stride_t, at, n, BITS, INFINITY)
        keep, slot, above, equal = _select(key, kth, k - reached, above, equal)
        tl.store(out + before + slot, first + at, mask=keep)
        if positions is not None:
            source = positions + (first + at) * stride_position
            target = out_positions + before + slot
            for _ in range(rows):
                tl.store(target, tl.load(source, mask=keep), mask=keep)
                source += stride_row
                target += kept


# Rows times columns of a tile; a thread moves 16 values (8 for the second), and wide rows like long pieces.
TILES = [
    triton.Config({"ROWS": 4, "COLUMNS": 512}, num_warps=4),
    triton.Config({"ROWS": 1, "COLUMNS": 1024}, num_warps=4),
    triton.Config({"ROWS": 16, "COLUMNS": 128}, num_warps=4),
]


@triton.autotune(configs=space(TILES), key=["WIDTH"])
@triton.jit
def _gather_kernel(
    features, indices, out, rows, width, stride_row, stride_column,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One tile of out = features[indices]. WIDTH: the power of 2 from `width` up, which only the tuner reads."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (r < rows)[:, None] & (c < width)[None, :]
    source = tl.load(indices + r, mask=r < rows, other=0) * stride_row
    value = tl.load(features + source[:, None] + (c.to(tl.int64) * stride_column)[None, :], mask=mask)
    tl.store(out + (r.to(tl.int64) * width)[:, None] + c[None, :], value, mask=mask)


def _shape(longest: int, dtype: torch.dtype) -> dict[str, int]:
    """The compile-time arguments for rows of up to `longest` scores."""
    block = min(HELD, max(16, triton.next_power_of_2(longest)))
    bits, infinity = FORMATS[dtype]
    return {"BLOCK": block, "BITS": bits, "INFINITY": infinity, "num_warps": max(4, block // 512)}


@torch.library.custom_op("vtc::topk_sorted", mutates_args=())
def _topk_sorted(scores: Tensor, k: int) -> Tensor:
    out = scores.new_empty((scores.shape[0], k), dtype=torch.int64)
    if out.numel():
        with torch.cuda.device_of(scores):
            _topk_kernel[(len(scores),)](
                scores, out, scores.shape[1], k, *scores.stride(), **_shape(scores.shape[1], scores.dtype)
            )
    return out


@_topk_sorted.register_fake
def _(scores: Tensor, k: int) -> Tensor:
    return scores.new_empty((scores.shape[0], k), dtype=torch.int64)


@torch.library.custom_op("vtc::topk_packed", mutates_args=())
def _topk_packed(
    scores: Tensor, counts: Sequence[int], cu_seqlens: Sequence[int], positions: Tensor | None
) -> tuple[Tensor, Tensor]:
    out = scores.new_empty(sum(counts), dtype=torch.int64)
    moved = scores.new_empty(0) if positions is None else positions.new_empty((*positions.shape[:-1], len(out)))
    if not len(out):
        return out, moved
    lengths = [stop - start for start, stop in zip(cu_seqlens, cu_seqlens[1:])]
    before = [sum(counts[:s]) for s in range(len(counts))]
    # Pinned: the copy of pageable memory would make the host wait.
    table = torch.tensor([cu_seqlens[:-1], lengths, counts, before], dtype=torch.int64, pin_memory=scores.is_cuda)
    table = table.to(scores.device, non_blocking=True)
    rows = None if positions is None else positions.reshape(-1, len(scores))
    with torch.cuda.device_of(scores):
        _packed_kernel[(len(counts),)](
            scores, table, rows, out, None if rows is None else moved, len(counts), 0 if rows is None else len(rows),
            len(out), scores.stride(0), *((0, 0) if rows is None else rows.stride()),
            **_shape(max(lengths), scores.dtype),
        )  # fmt: skip
    return out, moved


@_topk_packed.register_fake
def _(
    scores: Tensor, counts: Sequence[int], cu_seqlens: Sequence[int], positions: Tensor | None
) -> tuple[Tensor, Tensor]:
    kept = sum(counts)
    moved = scores.new_empty(0) if positions is None else positions.new_empty((*positions.shape[:-1], kept))
    return scores.new_empty(kept, dtype=torch.int64), moved


@torch.library.custom_op("vtc::gather_rows", mutates_args=())
def _gather_rows(features: Tensor, indices: Tensor) -> Tensor:
    rows, width = len(indices), features.shape[1]
    out = features.new_empty((rows, width))
    if out.numel():
        with torch.cuda.device_of(features):
            _gather_kernel[lambda meta: (triton.cdiv(rows, meta["ROWS"]), triton.cdiv(width, meta["COLUMNS"]))](
                features, indices, out, rows, width, *features.stride(), WIDTH=triton.next_power_of_2(width)
            )
    return out


@_gather_rows.register_fake
def _(features: Tensor, indices: Tensor) -> Tensor:
    return features.new_empty((indices.shape[0], features.shape[1]))


@torch.no_grad()
def topk_sorted(scores: Tensor, k: int) -> Tensor:
    """`reference.topk_sorted` in one launch; other dtypes and rows of over LONGEST scores are left to the reference."""
    reference.check(scores, k)
    if scores.dtype not in FORMATS or scores.shape[1] > LONGEST:
        return reference.topk_sorted(scores, k)
    return torch.ops.vtc.topk_sorted(scores, k)


def topk_gather(
    scores: Tensor,
    counts: Sequence[int],
    cu_seqlens: Sequence[int],
    features: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`reference.topk_gather` in two launches, one without features, and one small copy to the device.

    Left to the reference: scores or moved tensors of other dtypes, segments of over LONGEST scores, and whatever is to
    be differentiated.
    """
    reference.check_packed(scores, counts, cu_seqlens, features, positions)
    moved = [x for x in (features, positions) if x is not None]
    long = any(stop - start > LONGEST for start, stop in zip(cu_seqlens, cu_seqlens[1:]))
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in moved)
    if scores.dtype not in FORMATS or long or recorded or any(x.dtype not in MOVED for x in moved):
        return reference.topk_gather(scores, counts, cu_seqlens, features, positions)
    with torch.no_grad():
        indices, places = torch.ops.vtc.topk_packed(scores, list(counts), list(cu_seqlens), positions)
        rows = None if features is None else torch.ops.vtc.gather_rows(features, indices)
    return indices, rows, None if positions is None else places
