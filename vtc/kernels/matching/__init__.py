"""Bipartite matching and energy of tokens by cosine, in memory that grows with their number, not its square.

`best_partners` and `energy` are the entry points; their documentation is with the code in `reference.py`.
"""

from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.matching.reference as reference
from vtc.kernels.backend import triton_wanted

__all__ = ["best_partners", "energy"]


def _implementation(*tensors: Tensor) -> ModuleType:
    """The module that does the work for these tensors: Triton where it is wanted, else the torch reference.

    `triton.py` is imported here, so that the CPU never needs it. It offers the same functions and agrees with the
    reference in `tests/test_triton_matching.py`.
    """
    if triton_wanted(*tensors):
        import vtc.kernels.matching.triton as triton

        return triton
    return reference


@wraps(reference.best_partners)
def best_partners(metric: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return _implementation(metric, first, second).best_partners(metric, first, second)


@wraps(reference.energy)
def energy(metric: Tensor, margin: float, alpha: float = 1.0) -> Tensor:
    return _implementation(metric).energy(metric, margin, alpha)
