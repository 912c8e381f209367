"""Merging into contextual tokens: evenly spaced targets among the other tokens, with the rest merged into them.

Source: VisionZip (arXiv 2412.04467) and VisionDrop (arXiv 2506.22283), whose released codes merge alike.
"""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**22  # similarities in memory at once


class Groups(NamedTuple):
    """The merge targets of tokens. targets [B, C]: indices of the contextual tokens, ascending. group [B, N]: the
    target 0..C-1 that a token joins (a target joins itself), -1 for dominant and for dropped tokens. weight [B, N]: its
    share there."""

    targets: Tensor
    group: Tensor
    weight: Tensor


class Slots(NamedTuple):
    """Groups in the terms of a Selection. keep, order [B, K]; target, weight [B, N], or [B, 1 + N] with [CLS] first."""

    keep: Tensor
    order: Tensor
    target: Tensor
    weight: Tensor


@torch.no_grad()
def contextual_merge(metric: Tensor, dominant: Tensor, contextual: int) -> Groups:
    """Groups of the tokens that are not dominant, by cosine similarity of `metric`.

    Of the n = N - d others in ascending order, every (n // C)-th is a target, the first C of them. Each of the rest
    joins the most similar target (the first one among equals). A target gets itself plus the mean of those that joined
    it: weights 1 and 1 / their number, so a contextual token is about twice as long as a plain one. That is not an
    average over target and group; it is what the released codes do. With C = 0 the others are dropped.

    A metric of length 0 is equally similar to every target. float32 inside (float64 if metric is float64), in autocast
    too; at most about 2 ** 22 similarities are held at a time.

    Args:
        metric: [B, N, e].
        dominant: LongTensor [B, d], distinct in each row; d may be 0.
        contextual: C, 0..N - d.

    Raises:
        ValueError: a shape that doesn't fit, or C is outside 0..N - d.
    """
    if metric.ndim != 3 or dominant.ndim != 2 or len(metric) != len(dominant):
        shapes = f"{tuple(metric.shape)} and {tuple(dominant.shape)}"
        raise ValueError(f"metric must be [B, N, e] and dominant [B, d], got shapes {shapes}")
    batch, tokens = metric.shape[:2]
    n = tokens - dominant.shape[1]
    if not 0 <= contextual <= n:
        raise ValueError(f"contextual={contextual} is outside 0..{n}, the number of tokens that are not dominant")
    group = dominant.new_full((batch, tokens), -1)
    weight = torch.zeros(batch, tokens, device=metric.device, dtype=torch.promote_types(metric.dtype, torch.float32))
    if contextual == 0:
        return Groups(dominant.new_empty(batch, 0), group, weight)

    chosen = torch.zeros_like(group, dtype=torch.uint8).scatter_(1, dominant, 1)
    others = chosen.sort(dim=1, stable=True).indices[:, :n]
    number = torch.arange(contextual, device=metric.device)
    at = number * (n // contextual)
    nearest = most_similar(metric, others, at)
    nearest[:, at] = number
    joining = weight.new_ones(n).index_fill_(0, at, 0).expand(batch, -1)
    sizes = weight.new_zeros(batch, contextual).scatter_add_(1, nearest, joining)
    share = sizes.clamp_min(1).reciprocal().gather(1, nearest).index_fill_(1, at, 1)
    return Groups(others[:, at], group.scatter_(1, others, nearest), weight.scatter_(1, others, share))


def most_similar(metric: Tensor, tokens: Tensor, at: Tensor) -> Tensor:
    """For each of `tokens` [B, n], the most similar of those in its columns `at` [C] -> [B, n] in 0..C-1."""
    unit = metric.to(torch.promote_types(metric.dtype, torch.float32))
    unit = unit.gather(1, tokens.unsqueeze(-1).expand(-1, -1, metric.shape[2]))
    length = unit.norm(dim=2, keepdim=True)
    unit = unit / length.masked_fill(length == 0, 1)
    aims = unit[:, at].transpose(1, 2)
    rows = max(1, BLOCK // (len(tokens) * len(at)))
    device = metric.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return torch.cat([(part @ aims).argmax(2) for part in unit.split(rows, dim=1)], 1)


@torch.no_grad()
def merged_slots(dominant: Tensor, groups: Groups, cls: bool = False) -> Slots:
    """The slots of d dominant and C contextual tokens, in the sequence dominant ascending, then contextual.

    dominant: LongTensor [B, d], ascending. cls: the encoder's [CLS] is kept too and comes first in the sequence. It has
    no place among the tokens, so it takes the lowest one that is not kept otherwise; there has to be one. The token of
    that place is merged or dropped like any other.
    """
    lead, last = int(cls), int(cls) + dominant.shape[1]
    sequence = torch.cat([dominant, groups.targets], 1)
    if cls:
        occupied = torch.zeros_like(groups.group, dtype=torch.uint8).scatter_(1, sequence, 1)
        sequence = torch.cat([occupied.argmin(1, keepdim=True), sequence], 1)
    keep, position = sequence.sort(dim=1)
    order = position.argsort(1)
    target, weight = groups.group, groups.weight
    if groups.targets.shape[1]:
        target = target.where(target < 0, order[:, last:].gather(1, target.clamp(min=0)))
    target = target.scatter(1, dominant, order[:, lead:last])
    weight = weight.scatter(1, dominant, 1)
    if cls:
        target, weight = torch.cat([order[:, :1], target], 1), torch.cat([torch.ones_like(weight[:, :1]), weight], 1)
    return Slots(keep, order, target, weight)
