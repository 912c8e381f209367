"""Token transition variation in plain torch: the CPU path, the definition, and the oracle of every faster version.

Input and output of a module are [B, S, D]: 8192 tokens of width 4096 in half precision are 64 MiB each. Selection needs
two lengths and a product per token of them, so both are gone through in blocks of tokens, and float32 copies are made
of one block at a time.

All arithmetic is float32 (float64 if an input is float64), whatever the input dtype. Nothing is recorded for autograd.
"""

import torch
from torch import Tensor

BLOCK = {"cpu": 2**18, "other": 2**24}  # elements of x in a block: a few copies stay in a core's cache; few launches
EPS = 1e-8  # the least length that is divided by


def check(x: Tensor, y: Tensor, valid: Tensor | None) -> None:
    """Raises the ValueErrors of `transition_variation`."""
    if x.ndim != 3 or x.shape != y.shape:
        raise ValueError(f"x and y must both be [B, S, D], got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    batch, tokens, _ = x.shape
    if valid is not None and (tuple(valid.shape) != (batch, tokens) or valid.dtype != torch.bool):
        raise ValueError(f"valid must be bool [{batch}, {tokens}], got {valid.dtype} {list(valid.shape)}")
    for name, given in (("y", y), ("valid", valid)):
        if given is not None and given.device != x.device:
            raise ValueError(f"{name} is on {given.device}, x on {x.device}; they must be on one device")


@torch.no_grad()
def transition_variation(x: Tensor, y: Tensor, valid: Tensor | None = None) -> Tensor:
    """Change of length times share in the changes of direction, for each token of one module.

    m = ||y|| / ||x||, c = cosine of x and y, w = softmax of (1 - c) over the tokens of the row; the result is m * w.
    A token with x = 0 has no length to compare with and gets 0; where x or y is 0 the cosine counts as 0. Lengths under
    1e-8 are divided by as 1e-8. Tokens that are not valid get 0 and take no part in the softmax, whatever they hold.

    Args:
        x: [B, S, D], what enters the module.
        y: [B, S, D], what leaves it.
        valid: bool [B, S], True for real tokens; all if None.

    Returns:
        [B, S], float32 or float64.

    Raises:
        ValueError: a shape, dtype or device that doesn't fit.
    """
    check(x, y, valid)
    batch, tokens, width = x.shape
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    length, cosine = x.new_empty((2, batch, tokens), dtype=dtype)
    step = max(1, BLOCK["cpu" if x.device.type == "cpu" else "other"] // max(1, batch * width))
    for i in range(0, tokens, step):
        a, b = x[:, i : i + step].to(dtype), y[:, i : i + step].to(dtype)
        entering, leaving = torch.linalg.vector_norm(a, dim=-1), torch.linalg.vector_norm(b, dim=-1)
        product = (a * b).sum(-1)
        length[:, i : i + step] = (leaving / entering.clamp_min(EPS)).masked_fill(entering == 0, 0)
        cosine[:, i : i + step] = product / entering.clamp_min(EPS) / leaving.clamp_min(EPS)
    if valid is None:
        return length * torch.softmax(1 - cosine, -1)
    weight = torch.softmax((1 - cosine).masked_fill(~valid, -torch.inf), -1)
    return (length * weight).masked_fill(~valid, 0)
