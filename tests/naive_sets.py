"""The set choices as their papers define them: plain loops that recompute everything in every step."""

import torch
from torch import Tensor


def largest(values: list, allowed: list[int]) -> int:
    """The index among `allowed` (ascending) with the largest value, the first of them on a tie."""
    return max(allowed, key=lambda j: (values[j], -j))


def coverage(weights: Tensor, k: int, excluded: Tensor | None = None) -> list[int]:
    """weights [R, N]: all gains over the picks so far, taken anew in every step; excluded tokens last, ascending.

    The clamped differences of a candidate are added up by `torch.sum` over a vector of them, which is the only thing
    this shares with the code under test.
    """
    n, picks = weights.shape[1], []
    hidden = [] if excluded is None else excluded.nonzero().flatten().tolist()
    while len(picks) < k:
        free = [j for j in range(n) if j not in picks and j not in hidden]
        if not free:
            return (picks + hidden)[:k]
        covered = weights[:, picks].amax(1) if picks else torch.zeros_like(weights[:, 0])
        picks.append(largest([float((weights[:, j] - covered).clamp(min=0).sum()) for j in range(n)], free))
    return picks


def maxmin(cosine: Tensor, k: int, first: int | None = None, excluded: Tensor | None = None) -> list[int]:
    """cosine [N, N]: the minimum distance to all picks, taken anew in every step; excluded tokens last, ascending."""
    distance = (1 - cosine).tolist()
    hidden = [] if excluded is None else excluded.nonzero().flatten().tolist()
    shown = [j for j in range(len(distance)) if j not in hidden]
    if first is None:
        nearest = {i: sorted(distance[i][j] for j in shown)[min(1, len(shown) - 1)] for i in shown}
        first = largest(nearest, shown) if shown else hidden[0]
    picks = [first][:k]
    while len(picks) < k:
        free = [j for j in shown if j not in picks]
        if not free:
            return (picks + [j for j in hidden if j not in picks])[:k]
        picks.append(largest([min(distance[s][j] for s in picks) for j in range(len(distance))], free))
    return picks


def maxsum(cosine: Tensor, first: int, k: int) -> list[int]:
    """cosine [N, N]: the sum of the cosines with all picks, in their order, taken anew in every step."""
    picks = [first][:k]
    while len(picks) < k:
        free = [j for j in range(len(cosine)) if j not in picks]
        total = torch.zeros_like(cosine[0])
        for s in picks:
            total = total + cosine[s]
        picks.append(largest((-total).tolist(), free))
    return picks


def dpp(features: Tensor, quality: Tensor, k: int) -> tuple[list[int], list[float]]:
    """features [N, D], quality [N]: the picks by ratios of determinants of K in float64, and of each step how far the
    best ratio is ahead of the second, relative to it. It ends early where no ratio is clear of rounding."""
    x = features.double()
    norm = x.norm(dim=1, keepdim=True)
    x = torch.where(norm > 0, x / norm, 0) * quality.double()[:, None]
    kernel, picks, margins, det = x @ x.T, [], [], 1.0
    while len(picks) < k:
        free = [j for j in range(len(x)) if j not in picks]
        ratio = {j: float(torch.linalg.det(kernel[picks + [j]][:, picks + [j]])) / det for j in free}
        pick = largest(ratio, free)
        if ratio[pick] < 1e-3 * float(kernel.diagonal().max()) or ratio[pick] <= 0:
            break
        margins.append(1 - max([ratio[j] for j in free if j != pick], default=0.0) / ratio[pick])
        picks.append(pick)
        det *= ratio[pick]
    return picks, margins
