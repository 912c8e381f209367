"""Greedy suppression: the best token stays and drops those too similar to it, then the best of the rest.

Source: PruneSID (ICLR 2026); the same rule thins boxes in object detection.
"""

import torch
from torch import Tensor


@torch.no_grad()
def suppress(similarity: Tensor, scores: Tensor, groups: Tensor, threshold: Tensor | float) -> Tensor:
    """Which tokens of one unit stay, bool [N].

    In the order of descending scores (the lower index first among equals) a token stays unless one that stays before
    it in the same group is more similar to it than `threshold`. A token whose score is 0 neither stays nor drops any.

    similarity: [N, N], symmetric. scores: [N], not negative. groups: LongTensor [N].

    The rule of all tokens is applied at once until nothing changes. What it says of the i-th token depends on those
    before it only, so the answer is right and final as soon as it repeats itself: after as many rounds as the longest
    chain of tokens that drop each other has, mostly a handful.
    """
    n = len(scores)
    order = scores.sort(descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(n, device=order.device))
    drops = (similarity > threshold) & (groups[:, None] == groups) & (rank[:, None] > rank)
    alive = scores > 0
    stays = alive
    while True:
        again = alive & ~(drops & stays).any(1)
        if torch.equal(again, stays):
            return stays
        stays = again
