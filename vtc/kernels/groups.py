"""Tokens in groups with a quota each: the first ones of each group in a given order."""

import torch
from torch import Tensor


@torch.no_grad()
def take(order: Tensor, group: Tensor, quota: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first quota[g] tokens of each group, group by group: LongTensor [count], and which entries count [count].

    order: LongTensor [N], the tokens from the best on. group: LongTensor [N] of 0..G-1. quota: LongTensor [G]. If
    the quotas sum to fewer than `count`, the rest is filler that does not count; if to more, the excess is left out.
    """
    order = order[group[order].sort(stable=True).indices]
    owner = group[order]
    sizes = torch.zeros_like(quota).scatter_add(0, group, torch.ones_like(group))
    place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[owner]
    late = (place >= quota[owner]).to(torch.uint8).sort(stable=True)
    return order[late.indices[:count]], late.values[:count] == 0


@torch.no_grad()
def fill(quota: Tensor, cap: Tensor, order: Tensor, short: Tensor) -> Tensor:
    """Quotas [G] raised by `short` in all, the groups of `order` [G] one after the other up to their caps [G]."""
    room = (cap - quota)[order]
    unfilled = short - (room.cumsum(0) - room)
    return quota.scatter_add(0, order, torch.minimum(unfilled.clamp_min(0), room))
