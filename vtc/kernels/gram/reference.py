"""Cosines of all pairs of tokens in plain torch: half of each matrix is multiplied, the other half mirrored."""

import torch
from torch import Tensor

from vtc.kernels.products import half_product, unit_vectors


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
    if units == 1:
        return half_product(x[0])[None]
    matrix = x.new_empty(units, n, n)
    for unit, out in zip(x, matrix):
        half_product(unit.clone(), out)  # a product may round by where its operand starts in memory
    return matrix


def check(features: Tensor) -> None:
    """Raises ValueError unless features are floats [B, N, D]."""
    if features.ndim != 3 or not features.is_floating_point():
        raise ValueError(f"features are {features.dtype} {list(features.shape)}; possible: floats [B, N, D]")
