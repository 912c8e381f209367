"""Cosine similarities of the tokens of a unit, one row after another, as a greedy choice reads them."""

import torch
from torch import Tensor

from vtc.kernels.gram import cosine_matrix
from vtc.kernels.products import BLOCK, float_type, product, unit_vectors

# Entries of the similarity matrices held at once: one unit of 16384 tokens, 1 GiB, as a product per pick would go
# through the whole features, many times what it reads of the matrix. On a CPU several units share less: they are
# multiplied one by one anyway. On a GPU, the fewer launches there are, the more units run side by side.
GRAM, GRAM_CUDA, ONE = 2**24, 2**28, 2**28


class Cosines:
    """Cosines between the tokens of B units, features [B, N, D], in float32 (float64 for float64 features).

    The N x N matrix (see `vtc.kernels.gram`) is computed once where all B of them have at most GRAM entries (GRAM_CUDA
    on a GPU), a single one at most ONE. Otherwise (longer units) nothing of size N x N exists: a row is a matrix-vector
    product when it is asked for. Which of the two it is depends on N, B and the kind of device alone; the two differ by
    rounding. The products of a unit are the same whatever stands beside it in the batch. A vector whose norm is 0 or
    not finite has cosine 0 with every token, itself too. Without the matrix products follow torch's setting for float32
    matmul precision, with autocast off.

    Attributes: features, as given, not copied. shape: theirs. device, dtype: of the cosines. matrix: [B, N, N] or None.
    """

    def __init__(self, features: Tensor):
        self.features = features
        self.shape, self.device, self.dtype = features.shape, features.device, float_type(features)
        units, n = self.shape[:2]
        self._start = torch.arange(units, device=self.device) * n
        self._x = None
        fits = units * n * n <= (ONE if units == 1 else _limit(features))
        self.matrix = cosine_matrix(features) if fits else None

    @property
    def x(self) -> Tensor:
        """The vectors divided by their norms, [B, N, D]; computed when they are first asked for."""
        if self._x is None:
            self._x = unit_vectors(self.features)
        return self._x

    def rows(self, tokens: Tensor) -> Tensor:
        """Cosines of one token of each unit, tokens [B], with all tokens of its unit: a new tensor [B, N]."""
        index = tokens if self.shape[0] == 1 else self._start + tokens
        if self.matrix is not None:
            return self.matrix.flatten(0, 1).index_select(0, index)
        chosen = self.x.flatten(0, 1).index_select(0, index)
        return torch.stack([product(x, vector) for x, vector in zip(self.x, chosen)])

    def second(self, excluded: Tensor | None = None) -> Tensor:
        """The second-largest entry of every row, [B, N]: the cosine with the nearest other token, as the largest is the
        token's own. Columns of tokens that are excluded, bool [B, N], do not count; -inf where one token or none is
        left."""
        units, n, _ = self.shape
        out = torch.full((units, n), -torch.inf, dtype=self.dtype, device=self.device)
        for b in range(units if n > 1 else 0):
            for i in range(0, n, BLOCK):
                if self.matrix is not None:
                    block = self.matrix[b, i : i + BLOCK]
                else:
                    block = product(self.x[b, i : i + BLOCK], self.x[b].t())
                if excluded is not None:
                    block = block.masked_fill(excluded[b], -torch.inf)
                out[b, i : i + BLOCK] = _second(block, i)
        return out


def _second(block: Tensor, start: int) -> Tensor:
    """The second-largest entry of each row [R] of block [R, N], whose first row is token `start`. On a CPU two passes
    over the others' entries are five times faster than a search for two, and right where none exceeds the own."""
    if block.device.type != "cpu":
        return block.topk(2, dim=1).values[:, 1]
    own = block.diagonal(start).clone()
    block.diagonal(start).fill_(-torch.inf)
    second = block.amax(1)
    block.diagonal(start).copy_(own)
    above = (second > own).nonzero()[:, 0]  # a copy's, by rounding, or the own is excluded
    if len(above):
        second[above] = block[above].topk(2, dim=1).values[:, 1]
    return second


def cosines_of(features: "Tensor | Cosines", part: slice) -> Cosines:
    """The cosines of some units; those that were computed before, for all units, are taken as they are."""
    return features if isinstance(features, Cosines) else Cosines(features[part])


def features_of(features: "Tensor | Cosines") -> Tensor:
    """The features [B, N, D], also where their cosines are given."""
    return features.features if isinstance(features, Cosines) else features


def units_at_once(features: Tensor) -> int:
    """How many units [N, D] of features [B, N, D] fit into one `Cosines` that holds their matrices; at least 1."""
    return max(1, _limit(features) // max(1, features.shape[1] ** 2))


def _limit(features: Tensor) -> int:
    return GRAM_CUDA if features.device.type == "cuda" else GRAM
