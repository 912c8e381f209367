"""Calls of the attention kernels, in every form that differs to the compiler."""

from collections.abc import Callable
from functools import partial

import torch

import vtc.kernels.attention_reduce.triton as attention

HALF, WHOLE = torch.bfloat16, torch.float32
MASK = torch.ones(2, 200, dtype=torch.bool)
BOUNDS = torch.tensor([0, 100, 200], dtype=torch.int32)


def _columns(dtype: torch.dtype, d: int, batch: int = 2, m: int = 200, n: int = 200, **options) -> None:
    q, k = torch.empty(batch, 4, m, d, dtype=dtype), torch.empty(batch, 2, n, d, dtype=dtype)
    attention.attention_columns(q, k, **options)


def _rows(dtype: torch.dtype, d: int, rows: int, heads: int = 4, n: int = 200, **options) -> None:
    q, k = torch.empty(2, heads, rows, d, dtype=dtype), torch.empty(2, 2, n, d, dtype=dtype)
    attention.attention_rows(q, k, **options)


CALLS: list[Callable[[], None]] = [
    *(partial(_columns, HALF, d) for d in (64, 256, 320)),
    *(partial(_columns, WHOLE, d) for d in (64, 256)),
    partial(_columns, torch.float16, 80, key_mask=MASK, query_mask=MASK, causal=True),
    partial(_columns, HALF, 128, key_mask=MASK, query_mask=MASK, causal=True, scale=-1.0),
    partial(_columns, WHOLE, 128, key_mask=MASK, query_mask=MASK, causal=True, scale=-1.0),
    partial(_columns, HALF, 64, 1, 1000, 2100),
    *(partial(_columns, dtype, 128, 2, lse=torch.empty(2, 4, 200), causal=True) for dtype in (HALF, WHOLE)),
    partial(_columns, HALF, 128, 1, cu_seqlens=BOUNDS),
    partial(_columns, WHOLE, 128, 1, cu_seqlens=BOUNDS.long(), query_mask=MASK[:1], key_mask=MASK[:1], causal=True),
    *(partial(_rows, dtype, d, 1) for dtype in (HALF, torch.float16, WHOLE) for d in (64, 80, 256)),
    *(partial(_rows, dtype, 128, 9, key_mask=MASK, causal_positions=torch.zeros(9, dtype=torch.int64), scale=-1.0)
      for dtype in (HALF, WHOLE)),
    *(partial(_rows, dtype, 256, 40, heads, key_mask=MASK, causal_positions=torch.zeros(40, dtype=torch.int32),
              reduce_heads="none") for dtype in (HALF, WHOLE) for heads in (6, 40)),
]  # fmt: skip
