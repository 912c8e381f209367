"""Cosines of all pairs of tokens in plain torch: half of each matrix is multiplied, the other half mirrored."""

from contextlib import nullcontext

import torch
from torch import Tensor

BLOCK = 512  # rows of a matrix product: half of a symmetric matrix is enough, and a block that is not kept stays small


@torch.no_grad()
def cosine_matrix(features: Tensor) -> Tensor:
    """Cosines between the tokens of each unit, in float32 (float64 for float64 features).

    Exactly symmetric. The products of a unit are the same whatever stands beside it in the batch. A vector whose norm
    is 0 or not finite has cosine 0 with every token, itself too. The reference's products follow torch's setting for
    float32 matmul precision, with autocast off; Triton's are exact for half-precision features and IEEE float32 for
    float32 ones, and a vector is 0 to it from a norm below 1.1e-19 (whose square is not a normal number).

    Args:
        features: [B, N, D].

    Returns:
        [B, N, N].

    Raises:
        ValueError: features that are not floats [B, N, D].
    """
    check(features)
    x = unit_vectors(features)
    units, n = x.shape[:2]
    matrix = x.new_empty(units, n, n)
    for unit, out in zip(x, matrix):
        unit = unit if units == 1 else unit.clone()  # a product may round by where its operand starts in memory
        for i in range(0, n, BLOCK):
            block = product(unit[i : i + BLOCK], unit[i:].t())
            square = block[:, :BLOCK].triu()
            block[:, :BLOCK] = square + square.triu(1).t()
            out[i : i + BLOCK, i:] = block
            out[i:, i : i + BLOCK] = block.t()
    return matrix


def unit_vectors(features: Tensor) -> Tensor:
    """Each vector divided by its norm, [B, N, D] in float32 (float64 for float64 features); 0 where the norm is 0 or
    not finite."""
    x = features.to(float_type(features))
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x / norm).masked_fill_(~((norm > 0) & norm.isfinite()), 0)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in the dtype of both, inside autocast too."""
    device = left.device.type
    known = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if known else nullcontext():
        return left @ right


def float_type(*tensors: Tensor) -> torch.dtype:
    """float64 if one of the tensors is, otherwise float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check(features: Tensor) -> None:
    """Raises ValueError unless features are floats [B, N, D]."""
    if features.ndim != 3 or not features.is_floating_point():
        raise ValueError(f"features are {features.dtype} {list(features.shape)}; possible: floats [B, N, D]")
