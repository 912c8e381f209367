"""Cosine similarities of the tokens of a unit, one row after another, as a greedy choice reads them."""

from contextlib import nullcontext

import torch
from torch import Tensor

GRAM = 2**24  # entries of the similarity matrices held at once: one unit of 4096 tokens, or several smaller ones
BLOCK = 512  # rows of a matrix product: half of a symmetric matrix is enough, and a block that is not kept stays small


class Cosines:
    """Cosines between the tokens of B units, features [B, N, D], in float32 (float64 for float64 features).

    The N x N matrix is computed once where all B of them have at most GRAM entries; only half of it is multiplied, and
    the other half mirrored, so it is exactly symmetric. Otherwise (longer units) nothing of size N x N exists: a row is
    a matrix-vector product when it is asked for. Which of the two it is depends on N and B alone; the two differ by
    rounding. The products of a unit are the same whatever stands beside it in the batch. A vector whose norm is 0 or
    not finite has cosine 0 with every token, itself too. Products follow torch's setting for float32 matmul precision;
    autocast is off.
    """

    def __init__(self, features: Tensor):
        x = features.to(float_type(features))
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        self.x = (x / norm).masked_fill_(~((norm > 0) & norm.isfinite()), 0)
        units, n = x.shape[:2]
        self._start = torch.arange(units, device=x.device) * n
        self.matrix = None
        if units * n * n <= GRAM:
            self.matrix = x.new_empty(units, n, n)
            for unit, out in zip(self.x, self.matrix):
                unit = unit if units == 1 else unit.clone()  # a product may round by where its operand starts in memory
                for i in range(0, n, BLOCK):
                    block = product(unit[i : i + BLOCK], unit[i:].t())
                    square = block[:, :BLOCK].triu()
                    block[:, :BLOCK] = square + square.triu(1).t()
                    out[i : i + BLOCK, i:] = block
                    out[i:, i : i + BLOCK] = block.t()

    def rows(self, tokens: Tensor) -> Tensor:
        """Cosines of one token of each unit, tokens [B], with all tokens of its unit: a new tensor [B, N]."""
        index = tokens if len(self.x) == 1 else self._start + tokens
        if self.matrix is not None:
            return self.matrix.flatten(0, 1).index_select(0, index)
        chosen = self.x.flatten(0, 1).index_select(0, index)
        return torch.stack([product(x, vector) for x, vector in zip(self.x, chosen)])

    def second(self, excluded: Tensor | None = None) -> Tensor:
        """The second-largest entry of every row, [B, N]: the cosine with the nearest other token, as the largest is the
        token's own. Columns of tokens that are excluded, bool [B, N], do not count; -inf where one token or none is
        left."""
        units, n, _ = self.x.shape
        out = self.x.new_full((units, n), -torch.inf)
        for b in range(units if n > 1 else 0):
            for i in range(0, n, BLOCK):
                if self.matrix is not None:
                    block = self.matrix[b, i : i + BLOCK]
                else:
                    block = product(self.x[b, i : i + BLOCK], self.x[b].t())
                if excluded is not None:
                    block = block.masked_fill(excluded[b], -torch.inf)
                out[b, i : i + BLOCK] = block.topk(2, dim=1).values[:, 1]
        return out


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in the dtype of both, inside autocast too."""
    device = left.device.type
    known = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if known else nullcontext():
        return left @ right


def cosines_of(features: "Tensor | Cosines", part: slice) -> Cosines:
    """The cosines of some units; those that were computed before, for all units, are taken as they are."""
    return features if isinstance(features, Cosines) else Cosines(features[part])


def units_at_once(features: Tensor) -> int:
    """How many units [N, D] of features [B, N, D] fit into one `Cosines` that holds their matrices; at least 1."""
    return max(1, GRAM // max(1, features.shape[1] ** 2))


def float_type(*tensors: Tensor) -> torch.dtype:
    """float64 if one of the tensors is, otherwise float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
