"""Greedy DPP choice on a CPU: only tokens that could be the next pick are compared with the others.

A token's gain begins at K_jj = q_j^2 and only falls. So tokens enter in the order of K_jj, a batch at a time, and only
when the best gain among those that have entered is below the next K_jj: all others cannot be the pick. What has entered
is treated as in the plain algorithm, with the same picks; cosines are computed between tokens that have entered, and
their rows of the Cholesky factor are made up for by one triangular solve. With evenly spread qualities 1.5 to 5 tokens
enter for each pick (k = N / 4 to N / 20); with equal ones all do at once, which is the plain algorithm.
"""

import torch
from torch import Tensor

from vtc.kernels.products import half_product, product

BATCH = 64  # tokens that enter together: enough for a matrix product at full speed
MOST = 8192  # tokens that may enter; their kernel then takes 256 MiB


class Leaders:
    """The tokens of one unit that have entered, in the order of their K_jj. kernel [H, H]; factor [H, k]: rows of the
    Cholesky factor; rest [H]: what is left of K_jj, -inf for a pick; order [N]: all tokens by K_jj, equal ones by
    index; bound [N]: their K_jj; tops: those above 0; picks: places in `order`. H has room for at most twice as many as
    have entered."""

    def __init__(self, features: Tensor, norm: Tensor, quality: Tensor, k: int):
        self.features, self.norm, self.quality = features, norm, quality
        self.bound, self.order = quality.square().sort(descending=True, stable=True)
        self.tops, self.count, self.picks = self.bound[self.bound > 0].tolist(), 0, []
        new = quality.new_empty
        self.vectors, self.kernel = new(0, features.shape[1]), new(0, 0)
        self.factor, self.rest = new(0, k), new(0)

    def best(self) -> tuple[int, float] | None:
        """The token with the largest gain of all, as a place in `order`, and the gain; the first of equal ones. None
        when more than MOST tokens would have to enter."""
        while True:
            place, gain = 0, -1.0
            if self.count:
                rest = self.rest.numpy()[: self.count]
                place = int(rest.argmax())
                gain = float(rest[place])
            left = self.count < len(self.tops)
            if not left or self.tops[self.count] < gain:
                return place, gain
            end = min(len(self.tops), self.count + BATCH)
            while end < len(self.tops) and self.tops[end] == self.tops[end - 1]:
                end += 1  # equal tokens get equal figures in one product
            if end > MOST:
                return None
            self._enter(end)

    def _enter(self, end: int) -> None:
        self._make_room(end)
        old, new = self.count, slice(self.count, end)
        tokens = self.order[new]
        vectors = self.features.index_select(0, tokens).to(self.rest.dtype).div_(self.norm[tokens, None])
        self.vectors[new] = vectors
        scale = self.quality[self.order[:end]]
        cross = product(vectors, self.vectors[:old].t()).mul_(scale[new, None]).mul_(scale[:old])
        self.kernel[new, :old], self.kernel[:old, new] = cross, cross.t()
        self.kernel[new, new] = half_product(vectors).mul_(scale[new, None]).mul_(scale[new])
        self.rest[new] = self.bound[new]
        if self.picks:
            known, picks = len(self.picks), torch.tensor(self.picks)
            rows = self.kernel[picks, new]
            made = torch.linalg.solve_triangular(self.factor[picks, :known], rows, upper=False).t()
            self.factor[new, :known] = made
            self.rest[new] -= made.square().sum(1)
        self.count = end

    def _make_room(self, end: int) -> None:
        room, used = len(self.rest), slice(self.count)
        if end <= room:
            return
        room = min(len(self.tops), max(2 * room, end, 4 * BATCH))
        for name in ("vectors", "factor", "rest"):
            old = getattr(self, name)
            setattr(self, name, old.new_empty(room, *old.shape[1:]))
            getattr(self, name)[used] = old[used]
        old, self.kernel = self.kernel, self.kernel.new_empty(room, room)
        self.kernel[used, used] = old[used, used]

    def take(self, place: int, gain: float) -> None:
        """Makes a token a pick and lowers the gains of the others."""
        known, used = len(self.picks), slice(self.count)
        row = self.kernel[place, used].clone()
        if known:
            row -= product(self.factor[used, :known], self.factor[place, :known])
        row /= gain**0.5
        self.factor[used, known] = row
        self.rest[used].addcmul_(row, row, value=-1)
        self.rest[place] = -torch.inf
        self.picks.append(place)


def choose(features: Tensor, quality: Tensor, k: int, dependent: float) -> Tensor | None:
    """Picks [k] of one unit: features [N, D], quality [N] in the dtype of the computation; None when more than MOST
    tokens could be picks. dependent: `vtc.kernels.dpp.reference.DEPENDENT` times the machine epsilon."""
    norm = torch.linalg.vector_norm(features, dim=-1, dtype=quality.dtype)
    some = (norm > 0) & norm.isfinite()
    leaders = Leaders(features, norm, quality.masked_fill(~some, 0), k)
    while len(leaders.picks) < k:
        best = leaders.best()
        if best is None:
            return None
        place, gain = best
        if gain <= 0:
            break
        if gain <= dependent * leaders.tops[place]:
            leaders.rest[place] = 0.0  # in the span of the picks
        else:
            leaders.take(place, gain)
    chosen = leaders.order[torch.tensor(leaders.picks, dtype=torch.long)]
    left = torch.ones(len(quality), dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
    return torch.cat([chosen, left[: k - len(chosen)]])
