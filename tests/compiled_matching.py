"""Calls of the matching kernels, in every form that differs to the compiler."""

from collections.abc import Callable
from functools import partial

import torch

import vtc.kernels.matching.triton as matching


def _partners(rows: int, columns: int, width: int) -> None:
    torch.ops.vtc.best_partners(torch.empty(2, rows, width), torch.empty(2, columns, width))


def _energy(tokens: int, width: int) -> None:
    matching.energy(torch.empty(2, tokens, width), 0.3)


CALLS: list[Callable[[], None]] = [
    *(partial(_partners, *shape) for shape in ((288, 288, 64), (1, 1, 1), (33, 17, 80))),
    *(partial(_energy, *shape) for shape in ((576, 1024), (1, 1), (33, 80))),
]
