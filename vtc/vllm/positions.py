"""M-RoPE positions of a prompt with pruned images, as `vtc.patch` with positions="keep" leaves them.

The positions of text follow from the grids alone: after an image it continues at the image's first position plus the
longer side of its full grid, whichever tokens are kept. So text is exact from the start, each visual token gets its
image's first position on all axes, and the rows and columns of the kept tokens are added once they are known. They
travel as extra columns of the embeddings, two digits of base 256 each, since 16-bit floats hold integers exactly only
to 256.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DIGITS = 256
CHANNELS = 4
"""Columns that `attach` adds to the embeddings."""


@dataclass(frozen=True)
class Placed:
    """An image in a pruned prompt. offset: of its first token; count: its tokens in the prompt; grid: (rows, columns)
    of all its tokens."""

    offset: int
    count: int
    grid: tuple[int, int]


def initial(length: int, images: Sequence[Placed], keep_places: bool) -> tuple[Tensor, int]:
    """Positions [3, length] of a pruned prompt, and what to add to a later index to get its position.

    keep_places: kept tokens have the positions of their places (positions="keep"); otherwise all tokens are numbered
    without gaps.
    """
    if not keep_places:
        return torch.arange(length).expand(3, -1).clone(), 0
    axis, following, done = torch.empty(length, dtype=torch.long), 0, 0
    for image in sorted(images, key=lambda image: image.offset):
        text = image.offset - done
        axis[done : image.offset] = torch.arange(following, following + text)
        first = following + text
        axis[image.offset : image.offset + image.count] = first
        following, done = first + max(image.grid), image.offset + image.count
    axis[done:] = torch.arange(following, following + length - done)
    following += length - done
    return axis.expand(3, -1).clone(), following - length


def attach(features: Tensor, offsets: Tensor, columns: int) -> Tensor:
    """Features [k, D] of the tokens at `offsets` [k] of a raster, followed by their row and column: [k, D + 4]."""
    places = torch.stack([offsets // columns, offsets % columns], 1)
    digits = torch.stack([places // DIGITS, places % DIGITS], 2).flatten(1)
    return torch.cat([features, digits.to(features.device, features.dtype)], 1)


def detach(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `attach`: features [k, D], and rows and columns [k, 2]."""
    digits = rows[:, -CHANNELS:].long().unflatten(1, (2, 2))
    return rows[:, :-CHANNELS], digits[..., 0] * DIGITS + digits[..., 1]


def add_places(positions: Tensor, visual: Tensor, computed: int, places: Tensor) -> Tensor:
    """`initial` positions [3, L] with the rows and columns `places` [k, 2] of the next k visual tokens added.

    visual [L] bool: placeholders. computed: tokens of the prompt that were computed before; the k tokens are the first
    visual ones after them. May be called again for the same tokens: the first axis keeps the value that is added to.
    """
    if not len(places):
        return positions
    ahead = visual.clone()
    ahead[:computed] = False
    rank = ahead.long().cumsum(0) - 1
    is_next = ahead & (rank < len(places))
    added = places.to(positions.device)[rank.clamp(0, len(places) - 1)].T
    moved = torch.where(is_next, positions[:1] + added, positions[1:])
    return torch.cat([positions[:1], moved])
