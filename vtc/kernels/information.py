"""Mutual information of text tokens and visual tokens in attention, in bits.

Source: AutoPrune (NeurIPS 2025).
"""

import torch
from torch import Tensor

FLOOR = 1e-6


@torch.no_grad()
def mutual_information(attention: Tensor) -> Tensor:
    """Of text rows and visual columns of softmax attention [..., T, m], not renormalised; float64 [...].

    p = attention / T is taken for the joint distribution, with the columns' sums over T and 1 / T as its margins.
    """
    rows = attention.shape[-2]
    p = attention.double() / rows
    ratio = p / (p.sum(-2, keepdim=True) / rows + FLOOR)
    return (p * ratio.clamp_min(FLOOR).log2()).sum((-2, -1))
