"""Where the visual tokens of an image come from and where they lie: tiles, images, and one run of the encoder."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtc.core.selection import Flow
from vtc.core.signals import Extent, Signal


@dataclass(frozen=True)
class Tile:
    """The visual tokens that one crop of an image gives to the prompt.

    crop: its index in the encoder's batch. offsets [n]: places of its tokens in the image's run of tokens.
    patches [n]: the encoder's patches (or merged tokens) that they come from. grid: (rows, columns) of the raster, None
    where tokens of it are gone. corner: (row, column) of its first token among those of all tiles, as they lie beside
    each other on the picture; a crop that shows the whole picture has (0, 0).
    """

    crop: int
    offsets: Tensor
    patches: Tensor
    grid: tuple[int, int] | None
    corner: tuple[int, int] = (0, 0)

    @property
    def extent(self) -> Extent | None:
        """Grid and corner, as a stage is told them; None where tokens are gone."""
        return None if self.grid is None else Extent(*self.grid, *self.corner)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.offsets)


@dataclass(frozen=True)
class ImageLayout:
    """One image in the prompt: a run of `tokens` placeholders. All of them belong to a tile, except structural ones
    (row-end tokens)."""

    tokens: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class View:
    """One raster of an image's tokens as it lies on the picture. Boxes are (left, top, right, bottom) in pixels of the
    original picture, cut off at its edges.

    offsets [n]: places of the tokens in the image's run. boxes [n, 4] float64: what each token shows. crops [c, 4]:
    what the tokens of each crop of the encoder show; nothing outside of them is seen. name: "picture"; "base" or
    "tiles" where an image is several crops.
    """

    name: str
    offsets: Tensor
    boxes: Tensor
    crops: Tensor


def boxes(rows: Tensor, columns: Tensor, side: tuple[float, float]) -> Tensor:
    """Boxes [n, 4] of places [n] in a raster whose cells have `side` (height, width)."""
    high, wide = side
    rows, columns = rows.double(), columns.double()
    return torch.stack([columns * wide, rows * high, (columns + 1) * wide, (rows + 1) * high], 1)


def on_picture(boxes: Tensor, size: tuple[int, int], scale: tuple[float, float], shift: tuple[float, float]) -> Tensor:
    """Boxes [n, 4] of the encoder's input, as boxes of the picture of `size` (height, width), cut off at its edges.

    scale, shift: (down, across); a pixel p of the picture lies at p * scale + shift.
    """
    high, wide = size
    scaled = (boxes - boxes.new_tensor([shift[1], shift[0]] * 2)) / boxes.new_tensor([scale[1], scale[0]] * 2)
    return scaled.clamp(min=0).minimum(boxes.new_tensor([wide, high] * 2))


def even_view(name: str, offsets: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> View:
    """A raster that divides a whole picture of `size` (height, width) evenly."""
    every, (rows, columns), (high, wide) = torch.arange(grid[0] * grid[1]), grid, size
    cells = boxes(every // columns, every % columns, (high / rows, wide / columns))
    return View(name, offsets, cells, torch.tensor([[0.0, 0.0, wide, high]], dtype=torch.float64))


def raster(crop: int, rows: int, columns: int) -> ImageLayout:
    """An image that is one full raster of tokens."""
    every = torch.arange(rows * columns)
    return ImageLayout(rows * columns, (Tile(crop, every, every, (rows, columns)),))


@dataclass
class Left:
    """What a stage inside the encoder left of one image. positions: per tile, the indices [k] of its tokens that are
    left, ascending; flows: per tile where tokens merged, in places of the image's run."""

    positions: list[Tensor]
    flows: tuple[Flow, ...] = ()


@dataclass
class VisionRun:
    """One run of the vision encoder: the recorded signals and the layout of its images.

    captured: per signal what was recorded, in call order. signals: per signal, per image, per tile a tensor [n] (keys:
    [n, e]; what the projector receives: [n, D], or [1 + n, D] with [CLS] first). bounds: of packed sequences, see
    `Family.packed_bounds`. inside: what a stage inside the encoder does in this run; left: of each image, None without
    such a stage; signals are then those of the tokens that are left; places: by signal, how what was captured of the
    tokens then left comes to the places of all.
    """

    captured: dict[Signal, list[Tensor]] = field(default_factory=dict)
    images: list[ImageLayout] = field(default_factory=list)
    signals: dict[Signal, list[list[Tensor]]] = field(default_factory=dict)
    bounds: list[int] | None = None
    observe_seconds: float = 0.0
    inside: object = None
    left: list[Left] | None = None
    places: dict[Signal, object] = field(default_factory=dict)
