"""Where the visual tokens of an image come from and where they lie: tiles, images, and one run of the encoder."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtc.signals import Signal


@dataclass(frozen=True)
class Tile:
    """The visual tokens that one crop of an image gives to the prompt.

    crop: its index in the encoder's batch. offsets [n]: places of its tokens in the image's run of tokens.
    patches [n]: the encoder's patches (or merged tokens) that they come from. grid: (rows, columns) of the raster.
    """

    crop: int
    offsets: Tensor
    patches: Tensor
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.offsets)


@dataclass(frozen=True)
class ImageLayout:
    """One image in the prompt: `tokens` placeholders in a row, of which tiles explain all but the structural ones
    (row-end tokens)."""

    tokens: int
    tiles: tuple[Tile, ...]


def raster(crop: int, rows: int, columns: int) -> ImageLayout:
    """An image that is one full raster of tokens."""
    every = torch.arange(rows * columns)
    return ImageLayout(rows * columns, (Tile(crop, every, every, (rows, columns)),))


@dataclass
class VisionRun:
    """One run of the vision encoder: what was asked for, what was seen, and the layout of its images.

    captured: per signal what was recorded, in call order. signals: per signal, per image, per tile a tensor [n] (keys:
    [n, e]; what the projector receives: [n, D], or [1 + n, D] with [CLS] first). bounds: of packed sequences, see
    `Family.packed_bounds`.
    """

    captured: dict[Signal, list[Tensor]] = field(default_factory=dict)
    images: list[ImageLayout] = field(default_factory=list)
    signals: dict[Signal, list[list[Tensor]]] = field(default_factory=dict)
    bounds: list[int] | None = None
    observe_seconds: float = 0.0
