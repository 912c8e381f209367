"""Merged tokens in the terms of a Selection: slots in a given order, and weights by size."""

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
    """The slots after some tokens are merged into others, each slot the size-weighted mean of its tokens.

    Args:
        sequence: LongTensor [B, K], the tokens that stay, in their new order.
        gone: LongTensor [B, g], the tokens that are merged into others.
        into: LongTensor [B, g], the target of each of them among the tokens that stay.
        size: [B, N], the weight of a token in the mean.
    """
    keep, position = sequence.sort(dim=1)
    order = position.argsort(1)
    slots = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    target = keep.new_full(size.shape, -1).scatter_(1, keep, slots)
    target = target.scatter(1, gone, target.gather(1, into))
    inside = target >= 0
    merged_size = size.masked_fill(~inside, 0)
    total = merged_size.new_zeros(keep.shape).scatter_add_(1, target.clamp(min=0), merged_size)
    return Joined(keep, order, target, merged_size / total.gather(1, target.clamp(min=0)), total)
