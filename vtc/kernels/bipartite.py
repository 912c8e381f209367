"""Thinning a list by bipartite similarity: every other token is a candidate; those most similar to the rest go.

Source: VisPruner (arXiv 2412.01818), whose released code fixes the order of the list between rounds.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

HELD = 2**28  # similarities in memory at once
BLOCK = 2**22  # similarities computed at a time
ONE = 2**29  # similarity 1 as an integer
COMPACT = 0.7  # when fewer than this share of the tokens is left, dropped ones are removed from the matrix


@torch.no_grad()
def bipartite_prune(features: Tensor, keep: int, per_round: int = 8) -> Tensor:
    """The tokens of a list left after rounds that each drop the most replaceable ones.

    In a round the tokens at even places (counted from 0) are compared with those at odd places: m is the largest cosine
    similarity of a token to any of the latter. The `per_round` with the largest m go, fewer in the last round, and no
    more than there are at even places. The next list is what remains at even places by descending m, then the odd
    places as they were. Where a list has an odd number of tokens, the even places are one more. Among equals the one
    that comes first in the list ranks first. A token of length 0 has similarity 0.

    Every rank of a round decides who meets whom in the next, so rounding must not: similarities are computed in float64
    whatever the features' dtype, and compared as multiples of 2 ** -29. They are computed once, n x n integers of 4
    bytes per unit; as many units at a time as fit into 2 ** 28 of them, at least one. NaN isn't looked for: which
    tokens stay is open then.

    Args:
        features: [B, n, D], in the order of the list.
        keep: 0..n. 0 gives an empty [B, 0].
        per_round: at least 1.

    Returns:
        LongTensor [B, keep]: places in the given list, in the order of the last list.

    Raises:
        ValueError: features aren't [B, n, D], or a number is out of range.
    """
    if features.ndim != 3:
        raise ValueError(f"features must be [B, n, D], got shape {tuple(features.shape)}")
    batch, n = features.shape[:2]
    if not 0 <= keep <= n:
        raise ValueError(f"keep={keep} is outside 0..{n}, the number of tokens in the list")
    if per_round < 1:
        raise ValueError(f"per_round={per_round} drops nothing; possible: 1 or more")
    if keep in (0, n):
        return torch.arange(keep, device=features.device).repeat(batch, 1)
    parts = features.split(max(1, HELD // n**2))
    return torch.cat([_rounds(torch.stack([_similarity(unit) for unit in part]), keep, per_round) for part in parts])


def _similarity(features: Tensor) -> Tensor:
    """Cosine similarities [n, n] of features [n, D] as int32, in units of 1 / ONE."""
    unit = features.double()
    length = unit.norm(dim=1, keepdim=True)
    unit = unit / length.masked_fill(length == 0, 1)
    device = unit.device.type
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        blocks = unit.split(max(1, BLOCK // len(unit)))
        return torch.cat([(block @ unit.T).mul_(ONE).round_().to(torch.int32) for block in blocks])


def _rounds(similarity: Tensor, keep: int, per_round: int) -> Tensor:
    """See `bipartite_prune`; similarity [B, n, n]."""
    first = torch.arange(len(similarity), device=similarity.device).unsqueeze(1)
    every = torch.arange(similarity.shape[1], device=similarity.device).expand(len(similarity), -1)
    places = listed = every  # places: what the rows of `similarity` are; left: the list, as rows of it
    while (size := listed.shape[1]) > keep:
        if size < COMPACT * places.shape[1]:
            rows = zip(similarity, listed, strict=True)
            similarity = torch.stack([s.index_select(0, index).index_select(1, index) for s, index in rows])
            places, listed = places.gather(1, listed), every[:, :size]
        even, odd = listed[:, ::2], listed[:, 1::2]
        # Far enough below every similarity, and still an int32 when added to one.
        absent = similarity.new_full(places.shape, -3 * ONE).scatter_(1, odd, 0)
        rows = similarity.flatten(0, 1).index_select(0, (even + first * places.shape[1]).flatten())
        m = rows.view(*even.shape, -1).add_(absent.unsqueeze(1)).amax(2)
        dropped = min(per_round, size - keep, even.shape[1])
        stay = m.sort(dim=1, descending=True, stable=True).indices[:, dropped:]
        listed = torch.cat([even.gather(1, stay), odd], 1)
    return places.gather(1, listed)
