"""Reductions of softmax attention that never hold the full [H, M, N] matrix: single rows, and sums over columns.

`attention_rows` and `attention_columns` are the entry points; their documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.attention_reduce.reference as reference

__all__ = ["attention_columns", "attention_rows"]


def _implementation(queries: Tensor) -> ModuleType:
    """The module that does the work for these tensors: the torch reference on every device.

    A module for CUDA tensors is to be chosen here (and imported here, so that the CPU never needs its dependencies).
    It has to offer the same two functions and to agree with the reference in `tests/test_kernels.py`.
    """
    return reference


@wraps(reference.attention_rows)
def attention_rows(queries: Tensor, keys: Tensor, **options) -> Tensor:
    return _implementation(queries).attention_rows(queries, keys, **options)


@wraps(reference.attention_columns)
def attention_columns(queries: Tensor, keys: Tensor, **options) -> Tensor:
    return _implementation(queries).attention_columns(queries, keys, **options)
