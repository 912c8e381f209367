"""Where the visual tokens of an image come from and where they are: tiles, images, and one run of the encoder."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vtc.core.selection import Flow
from vtc.core.signals import Extent, Signal


@dataclass(frozen=True)
class Tile:
    """The visual tokens in the prompt that come from one crop of an image.

    crop: its index in the encoder's batch. offsets [n]: places of its tokens in the image's run of tokens.
    patches [n]: the encoder's patches (or merged tokens) that they come from. grid: (rows, columns) of the raster, None
    if tokens of it were dropped. corner: (row, column) of its first token on the grid that all tiles of the image form
    together; a crop that shows the whole image has (0, 0).
    """

    crop: int
    offsets: Tensor
    patches: Tensor
    grid: tuple[int, int] | None
    corner: tuple[int, int] | None = (0, 0)

    @property
    def extent(self) -> Extent | None:
        """Grid and corner, as passed to a stage; None if tokens were dropped or the corner is unknown."""
        return None if self.grid is None or self.corner is None else Extent(*self.grid, *self.corner)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.offsets)


@dataclass(frozen=True)
class ImageLayout:
    """One image or clip in the prompt: `tokens` placeholders. All of them belong to a tile, except structural ones
    (row-end tokens). frames: of a clip, each of which is a tile, in order; 0 for an image. resampled: "before" or
    "after" the projector, if the tokens are a smaller raster computed from the encoder's there; else ""."""

    tokens: int
    tiles: tuple[Tile, ...]
    frames: int = 0
    resampled: str = ""


@dataclass(frozen=True)
class View:
    """One raster of an image's tokens, placed on the image. Boxes are (left, top, right, bottom) in pixels of the
    original image, clipped at its edges.

    offsets [n]: places of the tokens in the image's run. boxes [n, 4] float64: what each token shows. crops [c, 4]:
    what each crop of the encoder shows; the encoder sees nothing outside of them. name: "picture"; "base" or "tiles" if
    an image is several crops; "frame 0", ... for those of a clip.
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
    """Maps boxes [n, 4] on the encoder's input to boxes on the image of `size` (height, width), clipped at its edges.

    scale, shift: (vertical, horizontal); a pixel p of the image lies at p * scale + shift.
    """
    high, wide = size
    scaled = (boxes - boxes.new_tensor([shift[1], shift[0]] * 2)) / boxes.new_tensor([scale[1], scale[0]] * 2)
    return scaled.clamp(min=0).minimum(boxes.new_tensor([wide, high] * 2))


def even_view(name: str, offsets: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> View:
    """A raster that divides a whole image of `size` (height, width) evenly."""
    every, (rows, columns), (high, wide) = torch.arange(grid[0] * grid[1]), grid, size
    cells = boxes(every // columns, every % columns, (high / rows, wide / columns))
    return View(name, offsets, cells, torch.tensor([[0.0, 0.0, wide, high]], dtype=torch.float64))


def raster(crop: int, rows: int, columns: int) -> ImageLayout:
    """An image that is one full raster of tokens."""
    every = torch.arange(rows * columns)
    return ImageLayout(rows * columns, (Tile(crop, every, every, (rows, columns)),))


def clip(first: int, frames: int, rows: int, columns: int, resampled: str = "") -> ImageLayout:
    """A clip whose frames are full rasters, one after another. first: the crop of its first frame; resampled: see
    `ImageLayout`."""
    each = rows * columns
    raster_of_frame = torch.arange(each)
    tiles = [Tile(first + f, raster_of_frame + f * each, raster_of_frame, (rows, columns)) for f in range(frames)]
    return ImageLayout(frames * each, tuple(tiles), frames, resampled)


@dataclass
class Left:
    """The tokens of one image that a stage inside the encoder kept. positions: per tile, the indices [k] of its kept
    tokens, ascending; flows: of each tile in which tokens were merged, as places in the image's run."""

    positions: list[Tensor]
    flows: tuple[Flow, ...] = ()


@dataclass
class VisionRun:
    """One run of the vision encoder: the recorded signals and the layout of its images, or of its clips.

    captured: per signal, the recorded tensors in call order. signals: per signal, per image, per tile a tensor [n]
    (keys: [n, e]; the projector's input: [n, D], or [1 + n, D] with [CLS] first). bounds: of packed sequences, see
    `Family.packed_bounds`. inside: the run of a stage inside the encoder; left: the tokens it left of each image, None
    without such a stage; signals then cover only these tokens; places: by signal, a function that scatters the values
    captured for the tokens left at that time to the places of all tokens.
    """

    captured: dict[Signal, list[Tensor]] = field(default_factory=dict)
    images: list[ImageLayout] = field(default_factory=list)
    signals: dict[Signal, list[list[Tensor]]] = field(default_factory=dict)
    bounds: list[int] | None = None
    observe_seconds: float = 0.0
    inside: object = None
    left: list[Left] | None = None
    places: dict[Signal, object] = field(default_factory=dict)

    @classmethod
    def joined(cls, runs: list["VisionRun"]) -> "VisionRun":
        """Several runs for one batch of prompts (images and clips), as one: first all images, then all clips."""
        if len(runs) == 1:
            return runs[0]
        parts = [run.left for run in runs]
        shared = [signal for signal in runs[0].signals if all(signal in run.signals for run in runs)]
        return cls(
            images=[image for run in runs for image in run.images],
            signals={signal: [tiles for run in runs for tiles in run.signals[signal]] for signal in shared},
            observe_seconds=sum(run.observe_seconds for run in runs),
            inside=next((run.inside for run in runs if run.inside is not None), None),
            left=None if any(part is None for part in parts) else [left for part in parts for left in part],
        )

    def grouped(self, counts: list[int]) -> "VisionRun":
        """The same run with its crops, so far images of their own, joined to images of counts[i] crops each."""
        crops, signals, left = iter(self.images), {s: iter(parts) for s, parts in self.signals.items()}, None
        images = [joined_crops([next(crops) for _ in range(n)]) for n in counts]
        tiles = {s: [[tile for _ in range(n) for tile in next(parts)] for n in counts] for s, parts in signals.items()}
        if self.left is not None:
            remaining = iter(zip(self.images, self.left, strict=True))
            left = [_joined_left([next(remaining) for _ in range(n)]) for n in counts]
        return replace(self, images=images, signals=tiles, left=left)


def joined_crops(crops: list[ImageLayout]) -> ImageLayout:
    """One image whose tokens are those of several, one after another."""
    tiles, start = [], 0
    for crop in crops:
        tiles += [replace(tile, offsets=tile.offsets + start, corner=None) for tile in crop.tiles]
        start += crop.tokens
    return crops[0] if len(crops) == 1 else ImageLayout(start, tuple(tiles))


def _joined_left(crops: list[tuple[ImageLayout, Left]]) -> Left:
    positions, flows, start = [], [], 0
    for layout, left in crops:
        positions += left.positions
        flows += [replace(flow, offsets=flow.offsets + start) for flow in left.flows]
        start += layout.tokens
    return Left(positions, tuple(flows))
