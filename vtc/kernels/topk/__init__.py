"""Top-k whose answer does not depend on the device, the batch or luck, and the gather of what it keeps.

`topk_sorted` and `topk_gather` are the entry points; their documentation is with the code in `reference.py`.
"""

from collections.abc import Sequence
from functools import wraps
from types import ModuleType

from torch import Tensor

import vtc.kernels.topk.reference as reference
from vtc.kernels.backend import triton_wanted

__all__ = ["topk_gather", "topk_sorted"]


def _implementation(*tensors: Tensor | None) -> ModuleType:
    """The module that does the work for these tensors: Triton where it is wanted, else the torch reference.

    `triton.py` is imported here, so that the CPU never needs it. It offers the same functions and agrees with the
    reference in `tests/test_triton_topk.py`.
    """
    if triton_wanted(*tensors):
        import vtc.kernels.topk.triton as triton

        return triton
    return reference


@wraps(reference.topk_sorted)
def topk_sorted(scores: Tensor, k: int) -> Tensor:
    return _implementation(scores).topk_sorted(scores, k)


@wraps(reference.topk_gather)
def topk_gather(
    scores: Tensor,
    counts: Sequence[int],
    cu_seqlens: Sequence[int],
    features: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return _implementation(scores, features, positions).topk_gather(scores, counts, cu_seqlens, features, positions)
