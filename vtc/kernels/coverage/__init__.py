"""Greedy coverage: tokens that together stand for as much as possible of what all rows of a matrix ask for.

`coverage_greedy` is the entry point; its documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.coverage.reference as reference

__all__ = ["coverage_greedy"]


def _implementation(weights: Tensor) -> ModuleType:
    """The module that does the work for these tensors: the torch reference on every device.

    A module for CUDA tensors is to be chosen here (and imported here, so that the CPU never needs its dependencies).
    It has to offer the same function and to agree with the reference in `tests/test_kernels_sets.py`.
    """
    return reference


@wraps(reference.coverage_greedy)
def coverage_greedy(weights: Tensor, k: int, **options) -> Tensor:
    return _implementation(weights).coverage_greedy(weights, k, **options)
