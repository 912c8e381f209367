"""How much each token weighs in the principal components of its unit: the right singular vectors, without their signs.

Source: PruneSID (ICLR 2026), whose code takes the factors from a randomised routine with a new draw in each call.
"""

import torch
from torch import Tensor

from vtc.kernels.products import product
from vtc.kernels.transfer import upload

ROUNDING = 64  # times the machine epsilon and the number of tokens: a squared singular value below this is rounding


@torch.no_grad()
def loadings(features: Tensor, count: int, seed: int | None = None) -> Tensor:
    """|V| of the first `count` components of one unit, float64 [N, count].

    features: [N, D], a token a row; each is passed through a sigmoid and centred over its D channels. Exact, from the
    eigenvectors of the smaller of the two Gram matrices. With a seed: from a random projection and two power
    iterations (Halko, Martinsson and Tropp, 2011), drawn on the CPU; what it returns is close to the exact vectors only
    where their singular values stand apart. A component of singular value 0 weighs 0.

    Raises ValueError unless 1 <= count <= min(N, D).
    """
    n, d = features.shape
    if not 1 <= count <= min(n, d):
        raise ValueError(f"{count} components of {n} tokens with {d} channels; possible: 1 to {min(n, d)}")
    x = features.to(torch.promote_types(features.dtype, torch.float32)).sigmoid().double()
    x = x - x.mean(1, keepdim=True)
    if seed is not None:
        return _randomised(x if n >= d else x.T, count, seed, n >= d).abs()
    by_token = n <= d
    square = product(x, x.T) if by_token else product(x.T, x)
    values, vectors = torch.linalg.eigh((square + square.T) / 2)
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    values = values.clamp_min(0).sqrt()
    if not by_token:
        vectors = product(x, vectors) / values.masked_fill(values == 0, 1)
    floor = values[0] * (ROUNDING * torch.finfo(x.dtype).eps * n) ** 0.5
    return vectors.abs().masked_fill(values <= floor, 0)


def _randomised(tall: Tensor, count: int, seed: int, tokens_are_rows: bool) -> Tensor:
    """The singular vectors of the tokens' side of a matrix with at least as many rows as columns."""
    draw = torch.randn(tall.shape[1], count, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(product(tall, upload(draw, tall.device).double())).Q
    for _ in range(2):
        basis = torch.linalg.qr(product(tall.T, basis)).Q
        basis = torch.linalg.qr(product(tall, basis)).Q
    u, _, vh = torch.linalg.svd(product(basis.T, tall), full_matrices=False)
    return product(basis, u) if tokens_are_rows else vh.T
