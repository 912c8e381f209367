"""The attention that keys receive from important queries only: those that themselves receive much.

Source: VFlowOpt (arXiv 2508.05211).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vtc.kernels.attention_reduce import attention_columns


@torch.no_grad()
def important_columns(
    query: Tensor, key: Tensor, scale: float | None, t: float, bounds: Tensor | Sequence[int] | None = None
) -> Tensor:
    """Mean over heads and important queries of the attention that each key receives: [B, N], float32 or float64.

    A token is important if it receives, from all queries, more than t times the mean over the tokens; where none does,
    the one that receives most is (the first of them). query [B, H, N, D], key [B, Hkv, N, D]. bounds: packed sequences
    that attend only inside themselves, see `attention_columns`; each has important tokens of its own. Two passes, each
    in O(N) memory.
    """
    n = query.shape[2]
    if isinstance(bounds, Tensor):
        bounds = bounds.tolist()
    received = attention_columns(query, key, scale=scale, cu_seqlens=bounds)
    parts = [important(received[:, a:b], t) for a, b in pairwise([0, n] if bounds is None else bounds)]
    return attention_columns(query, key, scale=scale, query_mask=torch.cat(parts, 1), cu_seqlens=bounds)


def important(received: Tensor, t: float) -> Tensor:
    """Which of received [B, N] are important, bool [B, N]."""
    above = received > t * received.mean(1, keepdim=True)
    top = torch.zeros_like(above).scatter_(1, received.argmax(1, keepdim=True), True)
    return torch.where(above.any(1, keepdim=True), above, top)
