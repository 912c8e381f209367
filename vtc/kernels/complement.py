"""Text-guided merging: over several rounds, tokens are merged into those of them most relevant to the words.

Source: VisionTrim (ICLR 2026, arXiv 2601.22674).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vtc.kernels.products import product


class Complement(NamedTuple):
    """anchors [C]: indices, ascending. rounds: for each, the anchor 0..C-1 that a token is merged into [N], -1 for
    none, and its weight there [N] float32: one divided by the number of tokens merged there."""

    anchors: Tensor
    rounds: list[tuple[Tensor, Tensor]]


@torch.no_grad()
def complement(tokens: Tensor, words: Tensor, dominant: Tensor, count: int, iterations: int) -> Complement:
    """Anchors among the non-dominant tokens of one unit, and which of the others are merged into them.

    tokens [N, p], words [m, p] of a common space, compared by cosine. dominant: LongTensor [d]. count: C, 1..N - d.
    Anchors are the C tokens with the largest mean cosine to the words. In each round, each of the rest goes to the
    anchor t with the largest sum over the words w of cos(x, w) cos(w, t) (the first among equals), and each anchor adds
    the mean of what came to it; the next round compares with the sums. In float64, because each round builds on the one
    before. Without words the first tokens are the anchors.
    """
    n = len(tokens)
    raw, words = tokens.double(), normalize(words.double(), dim=1)
    unit = normalize(raw, dim=1)
    score = product(unit, words.sum(0)).index_fill(0, dominant, -torch.inf)
    best = score.sort(descending=True, stable=True).indices[:count]
    anchors = best.sort().values
    kept = torch.zeros(n, dtype=torch.uint8, device=tokens.device).index_fill(0, torch.cat([dominant, anchors]), 1)
    others = kept.sort(stable=True).indices[: n - len(dominant) - count]
    relevance, target, rounds = product(unit[others], words.T), raw[anchors], []
    for _ in range(iterations):
        goes = product(relevance, product(words, normalize(target, dim=1).T)).argmax(1)
        share = raw.new_zeros(count).scatter_add(0, goes, raw.new_ones(len(others))).clamp_min(1).reciprocal()[goes]
        target = target.index_add(0, goes, raw[others] * share.unsqueeze(1))
        group = torch.full((n,), -1, dtype=torch.long, device=tokens.device).scatter(0, others, goes)
        rounds.append((group, torch.zeros(n, device=tokens.device).scatter(0, others, share.float())))
    return Complement(anchors, rounds)
