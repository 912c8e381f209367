"""Raters: the text tokens that agree with an image more than others, whose attention then rates its tokens.

Source: SparseVLM (arXiv 2410.04417).
"""

import torch
from torch import Tensor

from vtc.kernels.products import float_type, product

BLOCK = 2**22  # products held at a time


@torch.no_grad()
def rater_scores(visual: Tensor, text: Tensor) -> Tensor:
    """How far each text token agrees with an image: of every visual token's softmax over the text, by unscaled
    products, the mean over the visual tokens.

    visual [N, D], text [T, D] -> [T], float32 (float64 if an input is).
    """
    dtype = float_type(visual, text)
    text = text.to(dtype).t()
    total = text.new_zeros(text.shape[1])
    for part in visual.split(max(1, BLOCK // max(1, text.shape[1]))):
        total += product(part.to(dtype), text).softmax(1).sum(0)
    return total / len(visual)


def raters(scores: Tensor) -> Tensor:
    """Which of scores [T] lie above their mean, bool [T]; all of them where none does."""
    above = scores > scores.mean()
    return above | ~above.any()
