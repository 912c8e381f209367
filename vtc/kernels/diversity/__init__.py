"""Greedy choices of tokens that differ from each other, by cosine.

`maxmin_greedy` and `maxsum_greedy` are the entry points; their documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.diversity.reference as reference
from vtc.kernels.backend import triton_wanted
from vtc.kernels.cosine import Cosines, features_of

__all__ = ["maxmin_greedy", "maxsum_greedy"]


def _implementation(features: Tensor | Cosines) -> ModuleType:
    """The module that does the work for these tensors: Triton where it is wanted, else the torch reference.

    `triton.py` is imported here, so that the CPU never needs it. It offers the same functions and agrees with the
    reference in `tests/test_triton_sets.py`.
    """
    if triton_wanted(features_of(features)):
        import vtc.kernels.diversity.triton as triton

        return triton
    return reference


@wraps(reference.maxmin_greedy)
def maxmin_greedy(features: Tensor | Cosines, k: int, **options) -> Tensor:
    return _implementation(features).maxmin_greedy(features, k, **options)


@wraps(reference.maxsum_greedy)
def maxsum_greedy(features: Tensor | Cosines, first: Tensor, k: int) -> Tensor:
    return _implementation(features).maxsum_greedy(features, first, k)
