"""How far a module of the language model changes the length and the direction of each token.

`transition_variation` is the entry point; its documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.transition.reference as reference

__all__ = ["transition_variation"]


def _implementation(x: Tensor) -> ModuleType:
    """The module that does the work for these tensors: the torch reference on every device.

    A module for CUDA tensors is to be chosen here (and imported here, so that the CPU never needs its dependencies).
    It has to offer the same function and to agree with the reference in `tests/test_transition.py`.
    """
    return reference


@wraps(reference.transition_variation)
def transition_variation(x: Tensor, y: Tensor, valid: Tensor | None = None) -> Tensor:
    return _implementation(x).transition_variation(x, y, valid)
