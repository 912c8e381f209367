"""Tokens that join others, in the terms of a Selection: slots in a given order, and weights by size."""

from typing import NamedTuple

import torch
from torch import Tensor


class Joined(NamedTuple):
    """keep, order [B, K]; target, weight [B, N]; size [B, K]: see `vtc.core.selection.Selection`."""

    keep: Tensor
    order: Tensor
    target: Tensor
    weight: Tensor
    size: Tensor


@torch.no_grad()
def joined(sequence: Tensor, gone: Tensor, into: Tensor, size: Tensor) -> Joined:
    """The slots of tokens of which some join others, each slot the mean of what flows into it, weighted by size.

    Args:
        sequence: LongTensor [B, K], the tokens that stay, in the order in which they stand afterwards.
        gone: LongTensor [B, g], the tokens that join others.
        into: LongTensor [B, g], which of the tokens that stay each of them joins.
        size: [B, N], what a token counts in the mean.
    """
    keep, position = sequence.sort(dim=1)
    order = position.argsort(1)
    slots = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    target = keep.new_full(size.shape, -1).scatter_(1, keep, slots)
    target = target.scatter(1, gone, target.gather(1, into))
    inside = target >= 0
    held = size.masked_fill(~inside, 0)
    total = held.new_zeros(keep.shape).scatter_add_(1, target.clamp(min=0), held)
    return Joined(keep, order, target, held / total.gather(1, target.clamp(min=0)), total)
