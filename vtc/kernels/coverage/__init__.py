"""Greedy coverage: tokens that together stand for as much as possible of what all rows of a matrix ask for.

`coverage_greedy` is the entry point; its documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.coverage.reference as reference
from vtc.kernels.backend import triton_wanted

__all__ = ["coverage_greedy"]


def _implementation(weights: Tensor) -> ModuleType:
    """The module that does the work for these tensors: Triton where it is wanted, else the torch reference.

    `triton.py` is imported here, so that the CPU never needs it. It offers the same function and agrees with the
    reference in `tests/test_triton_sets.py`.
    """
    if triton_wanted(weights):
        import vtc.kernels.coverage.triton as triton

        return triton
    return reference


@wraps(reference.coverage_greedy)
def coverage_greedy(weights: Tensor, k: int, **options) -> Tensor:
    return _implementation(weights).coverage_greedy(weights, k, **options)
