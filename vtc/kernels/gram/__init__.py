"""Cosines of all pairs of tokens of a unit, as a matrix.

`cosine_matrix` is the entry point; its documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.gram.reference as reference
from vtc.kernels.backend import triton_wanted

__all__ = ["cosine_matrix"]


def _implementation(features: Tensor) -> ModuleType:
    """The module that does the work for these tensors: Triton where it is wanted, else the torch reference.

    `triton.py` is imported here, so that the CPU never needs it. It offers the same function and agrees with the
    reference in `tests/test_triton_gram.py`.
    """
    if triton_wanted(features):
        import vtc.kernels.gram.triton as triton

        return triton
    return reference


@wraps(reference.cosine_matrix)
def cosine_matrix(features: Tensor) -> Tensor:
    return _implementation(features).cosine_matrix(features)
