"""Top-k in plain torch: the CPU path, the definition, and the oracle of every faster version."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check(scores: Tensor, k: int) -> None:
    """Raises the ValueErrors of `topk_sorted`."""
    if scores.ndim != 2:
        raise ValueError(f"scores must be [B, N], got shape {tuple(scores.shape)}")
    if not 0 <= k <= scores.shape[1]:
        raise ValueError(f"k={k} is outside 0..{scores.shape[1]}, the number of scores in a row")


def check_packed(
    scores: Tensor,
    counts: Sequence[int],
    cu_seqlens: Sequence[int],
    features: Tensor | None,
    positions: Tensor | None,
) -> None:
    """Raises the ValueErrors of `topk_gather`."""
    if scores.ndim != 1:
        raise ValueError(f"scores must be [T], got shape {tuple(scores.shape)}")
    total = scores.shape[0]
    for name, given in (("counts", counts), ("cu_seqlens", cu_seqlens)):
        if isinstance(given, Tensor):
            raise ValueError(f"{name} is a tensor on {given.device}; possible: a list of ints")
    if len(cu_seqlens) != len(counts) + 1:
        raise ValueError(f"cu_seqlens has {len(cu_seqlens)} bounds, {len(counts)} counts need {len(counts) + 1}")
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != total:
        raise ValueError(f"cu_seqlens goes from {cu_seqlens[0]} to {cu_seqlens[-1]}; possible: from 0 to {total}")
    for s, k in enumerate(counts):
        length = cu_seqlens[s + 1] - cu_seqlens[s]
        if length < 0:
            raise ValueError(f"cu_seqlens falls from {cu_seqlens[s]} to {cu_seqlens[s + 1]}; it must ascend")
        if not 0 <= k <= length:
            raise ValueError(f"counts[{s}]={k} is outside 0..{length}, the number of scores of segment {s}")
    if features is not None and (features.ndim != 2 or features.shape[0] != total):
        raise ValueError(f"features must be [{total}, D], got shape {tuple(features.shape)}")
    if positions is not None and (positions.ndim < 1 or positions.shape[-1] != total):
        raise ValueError(f"positions must be [..., {total}], got shape {tuple(positions.shape)}")
    for name, given in (("features", features), ("positions", positions)):
        if given is not None and given.device != scores.device:
            raise ValueError(f"{name} is on {given.device}, scores on {scores.device}; they must be on one device")


@torch.no_grad()
def topk_sorted(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest scores of every row, ascending; among equal scores the lower index wins.

    A stable descending sort decides, because `torch.topk` leaves the order of equal values open and devices differ.
    float16 and bfloat16 scores are compared as float32 (exact). NaN counts as larger than every number, as in
    `torch.sort`, and all NaNs as equal; it isn't looked for, since that would make the host wait for the device.

    Args:
        scores: [B, N].
        k: how many to keep, 0..N. 0 gives an empty [B, 0].

    Returns:
        LongTensor [B, k] on the device of `scores`.

    Raises:
        ValueError: `scores` isn't [B, N], or k is outside 0..N.
    """
    check(scores, k)
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=1).values


def topk_gather(
    scores: Tensor,
    counts: Sequence[int],
    cu_seqlens: Sequence[int],
    features: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The best tokens of each image of a packed row, with their features and positions.

    Each image is a segment of the row and chooses as `topk_sorted` does. The choice is not differentiable; what is
    gathered from `features` and `positions` is.

    Args:
        scores: [T], the images one after another.
        counts: how many tokens each segment keeps, 0..its length; S of them.
        cu_seqlens: bounds of the segments, S + 1 of them: 0, ascending, T. Two equal bounds are an empty segment.
        features: [T, D].
        positions: [..., T], for instance [T] or [3, T].

    Returns:
        The indices, LongTensor [K] with K the sum of `counts`: segment by segment, ascending within each, counted from
        the start of the row. The features [K, D] and the positions [..., K] there, None where not given.

    Raises:
        ValueError: a shape or device that doesn't fit, bounds that don't ascend from 0 to T, a count outside
            0..length, or a tensor in the place of a list.
    """
    check_packed(scores, counts, cu_seqlens, features, positions)
    picks = [torch.empty(0, dtype=torch.int64, device=scores.device)]
    for s, k in enumerate(counts):
        start, stop = cu_seqlens[s], cu_seqlens[s + 1]
        picks.append(start + topk_sorted(scores[None, start:stop], k)[0])
    indices = torch.cat(picks)
    return (
        indices,
        None if features is None else features.index_select(0, indices),
        None if positions is None else positions.index_select(-1, indices),
    )
