"""Greedy maximum-a-posteriori choice under a determinantal point process: tokens that matter and differ.

`dpp_greedy` is the entry point; its documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.dpp.reference as reference

__all__ = ["dpp_greedy"]


def _implementation(features: object) -> ModuleType:
    """The module that does the work for these tensors: the torch reference on every device.

    A module for CUDA tensors is to be chosen here (and imported here, so that the CPU never needs its dependencies).
    It has to offer the same function and to agree with the reference in `tests/test_kernels_sets.py`.
    """
    return reference


@wraps(reference.dpp_greedy)
def dpp_greedy(features: object, quality: Tensor, k: int) -> Tensor:
    return _implementation(features).dpp_greedy(features, quality, k)
