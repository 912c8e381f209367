"""Greedy set selection as the papers define it: one loop of whole-matrix steps, nothing cached between steps.

The baseline of `vtc bench selection`. Each takes the similarities of its selector for one unit and returns the picks
[k].
"""

import torch
from torch import Tensor


@torch.no_grad()
def coverage(weights: Tensor, k: int) -> Tensor:
    """weights [R, N]: every step, the gains of all tokens over all rows."""
    covered, excluded, picks = weights.new_zeros(len(weights), 1), [], []
    for _ in range(k):
        gain = (weights - covered).clamp(min=0).sum(0)
        gain[excluded] = -1.0
        picks.append(int(gain.argmax()))
        excluded = picks
        covered = torch.maximum(covered, weights[:, picks[-1]].unsqueeze(1))
    return torch.tensor(picks)


@torch.no_grad()
def max_min(cosines: Tensor, k: int) -> Tensor:
    """cosines [N, N]: every step, the smallest distance to all picks so far."""
    distance = 1 - cosines
    picks = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())] if len(distance) > 1 else [0]
    while len(picks) < k:
        nearest = distance[picks].min(0).values
        nearest[picks] = -torch.inf
        picks.append(int(nearest.argmax()))
    return torch.tensor(picks)


@torch.no_grad()
def max_sum(cosines: Tensor, k: int) -> Tensor:
    """cosines [N, N]: every step, the sum of cosines with all picks so far; token 0 comes first."""
    picks = [0]
    while len(picks) < k:
        total = sum(cosines[pick] for pick in picks)
        total[picks] = torch.inf
        picks.append(int(total.argmin()))
    return torch.tensor(picks)


@torch.no_grad()
def dpp(kernel: Tensor, k: int) -> Tensor:
    """kernel [N, N]: every step, the determinant gain of each token by a solve with the picks so far."""
    picks: list[int] = []
    for _ in range(k):
        gain = kernel.diagonal().clone()
        if picks:
            cross = kernel[picks]
            gain -= (cross * torch.linalg.solve(kernel[picks][:, picks], cross)).sum(0)
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
    return torch.tensor(picks)
