"""Greedy suppression: the best token stays and drops those too similar to it, then the best of the rest.

Source: PruneSID (ICLR 2026); the same rule thins boxes in object detection.
"""

import torch
from torch import Tensor

ROUNDS = 8


@torch.no_grad()
def suppress(similarity: Tensor, scores: Tensor, groups: Tensor, threshold: Tensor | float) -> Tensor:
    """Which tokens of each unit stay, bool [..., N].

    In the order of descending scores (the lower index first among equals) a token stays unless one that stays before
    it in the same group is more similar to it than `threshold`. A token whose score is 0 neither stays nor drops any.

    similarity: [..., N, N], symmetric. scores: [..., N], not negative. groups: LongTensor [..., N]. threshold: [...].

    The rule of all tokens is applied at once until nothing changes. What it says of the i-th token depends on those
    before it only, so the answer is right and final as soon as it repeats itself: after as many rounds as the longest
    chain of tokens that drop each other has, mostly a handful. Whether it does is read after every ROUNDS of them (on a
    CPU, each), for all units at once; the host waits for the device there.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    place = torch.arange(scores.shape[-1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, place)
    if isinstance(threshold, Tensor):
        threshold = threshold.to(similarity.dtype)[..., None, None]
    drops = (similarity > threshold) & (groups[..., :, None] == groups[..., None, :])
    drops &= rank[..., :, None] > rank[..., None, :]
    alive = scores > 0
    stays = alive
    while True:
        for _ in range(1 if scores.device.type == "cpu" else ROUNDS):
            before, stays = stays, alive & ~(drops & stays[..., None, :]).any(-1)
        if torch.equal(before, stays):
            return stays
