"""Calls of the kernels that choose, gather and compare tokens, in every form that differs to the compiler."""

from collections.abc import Callable
from functools import partial

import torch

import vtc.kernels.topk.triton as topk
import vtc.kernels.transition.triton as transition

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LENGTHS = (1, 729, 2881, topk.HELD)


def _topk(dtype: torch.dtype, length: int) -> None:
    topk.topk_sorted(torch.empty(2, length, dtype=dtype), 1)


def _packed(dtype: torch.dtype, length: int, positions: torch.Tensor | None) -> None:
    topk.topk_gather(torch.empty(length, dtype=dtype), [1], [0, length], None, positions)


def _gather(dtype: torch.dtype, width: int) -> None:
    topk.topk_gather(torch.empty(4), [2, 1], [0, 3, 4], torch.empty(4, width, dtype=dtype))


def _transition(x: torch.dtype, y: torch.dtype, width: int, tokens: int, padded: bool) -> None:
    valid = torch.empty(2, tokens, dtype=torch.bool) if padded else None
    transition.transition_variation(
        torch.empty(2, tokens, width, dtype=x), torch.empty(2, tokens, width, dtype=y), valid
    )


CALLS: list[Callable[[], None]] = [
    *(partial(_topk, dtype, length) for dtype in DTYPES for length in LENGTHS),
    *(partial(_packed, dtype, length, None) for dtype in DTYPES for length in LENGTHS),
    *(partial(_packed, torch.float32, 64, torch.empty(3, 64, dtype=p)) for p in topk.MOVED if p != torch.int16),
    *(partial(_gather, dtype, width) for dtype in (*DTYPES, torch.int64, torch.bool) for width in (1, 1000, 4096)),
    *(partial(_transition, x, y, 4096, 2881, padded) for x in DTYPES for y in DTYPES for padded in (False, True)),
    *(partial(_transition, dtype, dtype, 24, tokens, False) for dtype in DTYPES for tokens in (1, 577)),
]
