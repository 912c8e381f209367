"""Bipartite matching and energy of tokens by cosine, in memory that grows with their number, not its square.

`best_partners` and `energy` are the entry points; their documentation is with the code in `reference.py`.
"""

from functools import wraps

from torch import Tensor

import vtc.kernels.matching.reference as reference

__all__ = ["best_partners", "energy"]


@wraps(reference.best_partners)
def best_partners(metric: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return reference.best_partners(metric, first, second)


@wraps(reference.energy)
def energy(metric: Tensor, margin: float, alpha: float = 1.0) -> Tensor:
    return reference.energy(metric, margin, alpha)
