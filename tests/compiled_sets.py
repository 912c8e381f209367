"""Calls of the kernels that choose sets and of the matrix of cosines, in every form that differs to the compiler."""

from collections.abc import Callable
from functools import partial

import torch

import vtc.kernels.coverage.triton as coverage
import vtc.kernels.diversity.triton  # noqa: F401
import vtc.kernels.dpp.triton  # noqa: F401
import vtc.kernels.gram.triton as gram


def _gram(dtype: torch.dtype, tokens: int, width: int) -> None:
    gram.cosine_matrix(torch.empty(2, tokens, width, dtype=dtype))


def _maxmin(tokens: int, starts: bool, hides: bool) -> None:
    first = torch.zeros(1, dtype=torch.long) if starts else None
    excluded = torch.zeros(1, tokens, dtype=torch.bool) if hides else None
    torch.ops.vtc.maxmin_greedy(torch.empty(1, tokens, tokens), 1, first, excluded)


def _maxsum(tokens: int) -> None:
    torch.ops.vtc.maxsum_greedy(torch.empty(1, tokens, tokens), 1, torch.zeros(1, dtype=torch.long))


def _dpp(tokens: int) -> None:
    torch.ops.vtc.dpp_greedy(torch.empty(1, tokens, tokens), torch.empty(1, tokens), 1)


def _coverage(tokens: int, rows: int, hides: bool) -> None:
    excluded = torch.zeros(1, tokens, dtype=torch.bool) if hides else None
    coverage.coverage_greedy(torch.empty(1, tokens, rows).mT, 1, excluded=excluded)


SIZES = (1, 577, 2881, 8192, 16384)
CALLS: list[Callable[[], None]] = [
    *(partial(_gram, dtype, 577, 4096) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    partial(_gram, torch.bfloat16, 1, 1),
    *(partial(_maxmin, n, starts, hides) for n in SIZES for starts in (False, True) for hides in (False, True)),
    *(partial(_maxsum, n) for n in SIZES),
    *(partial(_dpp, n) for n in SIZES),
    *(partial(_coverage, n, rows, hides) for n in SIZES for rows in (1, 600) for hides in (False, True)),
]
