"""Greedy choices of tokens that differ from each other, by cosine.

`maxmin_greedy` and `maxsum_greedy` are the entry points; their documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.diversity.reference as reference

__all__ = ["maxmin_greedy", "maxsum_greedy"]


def _implementation(features: object) -> ModuleType:
    """The module that does the work for these tensors: the torch reference on every device.

    A module for CUDA tensors is to be chosen here (and imported here, so that the CPU never needs its dependencies).
    It has to offer the same two functions and to agree with the reference in `tests/test_kernels_sets.py`.
    """
    return reference


@wraps(reference.maxmin_greedy)
def maxmin_greedy(features: object, k: int, **options) -> Tensor:
    return _implementation(features).maxmin_greedy(features, k, **options)


@wraps(reference.maxsum_greedy)
def maxsum_greedy(features: object, first: Tensor, k: int) -> Tensor:
    return _implementation(features).maxsum_greedy(features, first, k)
