"""What `vtc bench selection` compares with: the steps of the released code, and the definitions as plain loops.

The released steps go from features of one image to picks [k], as the authors' repositories do it in float32, written
anew; what a repository does only for its batch of one is left out. The definitions take the similarities of one unit:
one loop of whole-matrix steps, nothing cached between steps.
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


@torch.no_grad()
def released_cdpruner(projected: Tensor, quality: Tensor, k: int) -> Tensor:
    """projected [N, D], quality [N]: the whole kernel, then a Cholesky factor that grows by a row a step (Theia-4869/
    CDPruner)."""
    unit = projected / projected.norm(dim=-1, keepdim=True)
    kernel = quality[:, None] * (unit @ unit.T) * quality
    left, factor, picks = kernel.diagonal().clone(), kernel.new_zeros(k, len(kernel)), []
    for i in range(k):
        pick = int(left.argmax())
        row = (kernel[pick] - factor[:i, pick] @ factor[:i]) / left[pick].sqrt()
        factor[i] = row
        left -= row.square()
        left[pick] = -torch.inf
        picks.append(pick)
    return torch.tensor(picks)


@torch.no_grad()
def released_mmtok(text: Tensor, projected: Tensor, unprojected: Tensor, k: int) -> Tensor:
    """text [m, D], projected [N, D], unprojected [N, E]: weights rows by tokens, all gains in every step
    (Ironieser/MMTok)."""
    text, projected, unprojected = (
        x / x.norm(dim=-1, keepdim=True).clamp(min=1e-8) for x in (text, projected, unprojected)
    )
    words = torch.softmax(text @ projected.T / 0.02, 1) / len(text)
    tokens = torch.softmax(unprojected @ unprojected.T / 0.2, 1) / len(unprojected)
    return coverage(torch.cat([words, 0.5 * tokens]), k)


@torch.no_grad()
def released_divprune(projected: Tensor, k: int) -> Tensor:
    """projected [N, D]: all distances, and in every step the smallest over the rows of all picks (vbdi/divprune)."""
    unit = projected / projected.norm(dim=-1, keepdim=True)
    distance = 1 - unit @ unit.T
    picks = torch.empty(k, dtype=torch.long)
    for i in range(k):
        if i == 0:
            nearest = distance.topk(2, dim=0, largest=False).values[1]
        else:
            nearest = distance.index_select(0, picks[:i].to(distance.device)).amin(0)
        picks[i] = nearest.argmax()
    return picks
