"""Greedy maximum-a-posteriori choice under a determinantal point process: tokens that matter and differ.

`dpp_greedy` is the entry point; its documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.dpp.reference as reference
from vtc.kernels.backend import triton_wanted
from vtc.kernels.cosine import Cosines, features_of

__all__ = ["dpp_greedy"]


def _implementation(features: Tensor | Cosines, quality: Tensor) -> ModuleType:
    """The module that does the work for these tensors: Triton where it is wanted, else the torch reference.

    `triton.py` is imported here, so that the CPU never needs it. It offers the same function and agrees with the
    reference in `tests/test_triton_sets.py`.
    """
    if triton_wanted(features_of(features), quality):
        import vtc.kernels.dpp.triton as triton

        return triton
    return reference


@wraps(reference.dpp_greedy)
def dpp_greedy(features: Tensor | Cosines, quality: Tensor, k: int) -> Tensor:
    return _implementation(features, quality).dpp_greedy(features, quality, k)
