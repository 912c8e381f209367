"""Reductions of softmax attention that never hold the full [H, M, N] matrix: single rows, and sums over columns.

`attention_rows`, `attention_columns` and `attention_diagonal` (torch only) are the entry points; their documentation is
with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.attention_reduce.reference as reference
from vtc.kernels.backend import triton_wanted

__all__ = ["attention_columns", "attention_diagonal", "attention_rows"]

attention_diagonal = reference.attention_diagonal


def _implementation(*tensors: Tensor) -> ModuleType:
    """The module that does the work for these tensors: Triton where it is wanted, else the torch reference.

    `triton.py` is imported here, so that the CPU never needs it. It offers the same functions and agrees with the
    reference in `tests/test_triton_attention.py`.
    """
    if triton_wanted(*tensors):
        import vtc.kernels.attention_reduce.triton as triton

        return triton
    return reference


@wraps(reference.attention_rows)
def attention_rows(queries: Tensor, keys: Tensor, **options) -> Tensor:
    return _implementation(queries, keys).attention_rows(queries, keys, **options)


@wraps(reference.attention_columns)
def attention_columns(queries: Tensor, keys: Tensor, **options) -> Tensor:
    return _implementation(queries, keys).attention_columns(queries, keys, **options)
