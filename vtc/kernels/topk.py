"""Top-k whose answer does not depend on the device, the batch or luck."""

import torch
from torch import Tensor


@torch.no_grad()
def topk_sorted(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores of every row, ascending; among equal scores the lower index wins.

    A stable descending sort decides, because `torch.topk` leaves the order of equal values open and devices differ.
    float16 and bfloat16 scores are compared as float32 (exact). NaN counts as larger than every number, as in
    `torch.sort`; it isn't looked for, since that would make the host wait for the device.

    Args:
        scores: [B, N].
        k: how many to keep, 0..N. 0 gives an empty [B, 0].

    Returns:
        LongTensor [B, k] on the device of `scores`.

    Raises:
        ValueError: `scores` isn't [B, N], or k is outside 0..N.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [B, N], got shape {tuple(scores.shape)}")
    if not 0 <= k <= scores.shape[1]:
        raise ValueError(f"k={k} is outside 0..{scores.shape[1]}, the number of scores in a row")
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=1).values
