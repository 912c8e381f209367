"""How far a module of the language model changes the length and the direction of each token.

`transition_variation` is the entry point; its documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.transition.reference as reference
from vtc.kernels.backend import triton_wanted

__all__ = ["transition_variation"]


def _implementation(*tensors: Tensor | None) -> ModuleType:
    """The module that does the work for these tensors: Triton where it is wanted, else the torch reference.

    `triton.py` is imported here, so that the CPU never needs it. It offers the same function and agrees with the
    reference in `tests/test_triton_transition.py`.
    """
    if triton_wanted(*tensors):
        import vtc.kernels.transition.triton as triton

        return triton
    return reference


@wraps(reference.transition_variation)
def transition_variation(x: Tensor, y: Tensor, valid: Tensor | None = None) -> Tensor:
    return _implementation(x, y, valid).transition_variation(x, y, valid)
