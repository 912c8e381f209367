"""Products of vectors as kernels in plain torch share them: in the vectors' dtype, inside autocast too."""

from contextlib import nullcontext

import torch
from torch import Tensor

BLOCK = 512  # rows of a matrix product that is not kept
LEAF = 144  # rows of a symmetric product that are multiplied in full
STRIP = 64  # rows that are mirrored at once: copying a large transposed matrix as a whole takes twice as long


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in the dtype of both, inside autocast too."""
    device = left.device.type
    known = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if known else nullcontext():
        return left @ right


def half_product(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x x^T of x [N, D], exactly symmetric: half of it is multiplied, the other half mirrored. Written to `out` [N, N]
    if given. Products of halves are as large as can be, so that they run at full speed."""
    n = len(x)
    out = x.new_empty(n, n) if out is None else out
    if n <= LEAF:
        square = product(x, x.t()).triu()
        torch.add(square, square.triu(1).t(), out=out)
        return out
    middle = n // 2
    torch.mm(x[:middle], x[middle:].t(), out=out[:middle, middle:])  # autocast leaves it alone
    for i in range(0, middle, STRIP):
        end = min(i + STRIP, middle)
        out[middle:, i:end] = out[i:end, middle:].t()
    half_product(x[:middle], out[:middle, :middle])
    half_product(x[middle:], out[middle:, middle:])
    return out


def unit_vectors(features: Tensor) -> Tensor:
    """Each vector divided by its norm, [B, N, D] in float32 (float64 for float64 features); 0 where the norm is 0 or
    not finite."""
    x = features.to(float_type(features))
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    bad = ~((norm > 0) & norm.isfinite())
    x = x / norm
    return x.masked_fill_(bad, 0) if x.device.type != "cpu" or bool(bad.any()) else x


def float_type(*tensors: Tensor) -> torch.dtype:
    """float64 if one of the tensors is, otherwise float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
