"""The entropy of the grey values of a token's pixels.

Source: VFlowOpt (arXiv 2508.05211).
"""

import torch
from torch import Tensor

EPS = 1e-10


@torch.no_grad()
def grey_entropy(pixels: Tensor, released: bool = True) -> Tensor:
    """Entropy in bits [N] of the grey values of pixels [N, 3, p], in 256 bins.

    Grey is round(0.3333 * (R + G + B)) of 8-bit channels. pixels: as in the encoder's input, normalised. released: a
    channel is trunc(255 * x) modulo 256, so that values below 0 and above 1 wrap around, as in the released code; else
    the range of all N tokens' values is spread over 0 to 255.
    """
    x = pixels.float()
    if released:
        x = (255 * x).trunc().remainder(256)
    else:
        low, high = x.aminmax()
        x = ((x - low) / (high - low).clamp_min(EPS) * 255).round()
    grey = (0.3333 * x.sum(1)).round().long()
    counts = x.new_zeros(len(x), 256).scatter_add_(1, grey, torch.ones_like(grey, dtype=x.dtype))
    share = counts / grey.shape[1]
    return -(share * (share + EPS).log2()).sum(1)
