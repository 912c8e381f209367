"""Where the visual tokens of an image come from and where they are: tiles, images, and one run of the encoder."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vtc.core.errors import PatchError
from vtc.core.selection import Flow
from vtc.core.signals import Extent, Signal


@dataclass(frozen=True)
class Tile:
    """The visual tokens in the prompt that come from one crop of an image.

    crop: its index in the encoder's batch. offsets [n]: places of its tokens in the image's run of tokens.
    patches [n]: the encoder's patches (or merged tokens) that they come from. grid: (rows, columns) of the raster, None
    if tokens of it were dropped. corner: (row, column) of its first token on the grid that all tiles of the image form
    together, None if their arrangement is unknown; a crop that shows the whole image has (0, 0).
    """

    crop: int
    offsets: Tensor
    patches: Tensor
    grid: tuple[int, int] | None
    corner: tuple[int, int] | None = (0, 0)

    @property
    def extent(self) -> Extent | None:
        """Grid and corner, as passed to a stage; None if tokens were dropped."""
        return None if self.grid is None else Extent(*self.grid, *(self.corner or (None, None)))

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


@dataclass(frozen=True)
class CropGroup:
    """The crops that form an image of the prompt, in prompt order; the last of several shows the whole image, the
    others are its tiles in raster order. columns: tiles in a row, None if that is unknown."""

    crops: int
    columns: int | None = None

    @property
    def order(self) -> list[int]:
        """The crops in the order of a layout's tiles: that of the whole image comes first."""
        return [self.crops - 1, *range(self.crops - 1)]


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
    `Family.packed_bounds`. insides: the run of a stage inside the encoder (of each run that was joined), empty without
    such a stage; left: the tokens it left of each image, else None; signals then cover only these tokens; places: by
    signal, a function that scatters the values captured for the tokens left at that time to the places of all tokens.
    """

    captured: dict[Signal, list[Tensor]] = field(default_factory=dict)
    images: list[ImageLayout] = field(default_factory=list)
    signals: dict[Signal, list[list[Tensor]]] = field(default_factory=dict)
    bounds: list[int] | None = None
    observe_seconds: float = 0.0
    insides: list = field(default_factory=list)
    left: list[Left] | None = None
    places: dict[Signal, object] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "VisionRun":
        """The same record: assisted generation copies the encoder's outputs, on which it is noted."""
        return self

    @property
    def inside(self) -> Any:
        """The (first) run of the stage inside the encoder, None without one."""
        return self.insides[0] if self.insides else None

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
            insides=[inside for run in runs for inside in run.insides],
            left=None if any(part is None for part in parts) else [left for part in parts for left in part],
        )

    def grouped(self, groups: list[CropGroup]) -> "VisionRun":
        """The same run with its crops, so far images of their own, joined to images."""
        images, parts, left = [], [], None
        for group in groups:
            first = sum(map(len, parts))
            parts.append([first + crop for crop in group.order])
            images.append(joined_crops(self.images[first : first + group.crops], group))
        signals = {s: [[tiles[i][0] for i in part] for part in parts] for s, tiles in self.signals.items()}
        if self.left is not None:
            pairs = zip(parts, images, strict=True)
            left = [_joined_left([self.left[i] for i in part], image) for part, image in pairs]
        return replace(self, images=images, signals=signals, left=left)


def joined_crops(crops: list[ImageLayout], group: CropGroup) -> ImageLayout:
    """One image whose tokens are those of several crops of one tile each, one after another."""
    if len(crops) == 1:
        return crops[0]
    starts, tiles = [0, *accumulate(crop.tokens for crop in crops)], []
    for number in group.order:
        (tile,) = crops[number].tiles
        corner = None
        if number == len(crops) - 1:
            corner = (0, 0)
        elif group.columns is not None and tile.grid is not None:
            corner = (number // group.columns * tile.grid[0], number % group.columns * tile.grid[1])
        tiles.append(replace(tile, offsets=tile.offsets + starts[number], corner=corner))
    return ImageLayout(starts[-1], tuple(tiles))


def _joined_left(crops: list[Left], image: ImageLayout) -> Left:
    """What is left of an image; crops: of each tile."""
    flows = []
    for tile, left in zip(image.tiles, crops, strict=True):
        flows += [replace(flow, offsets=flow.offsets + tile.offsets[0]) for flow in left.flows]
    return Left([left.positions[0] for left in crops], tuple(flows))


def _row(tokens: Callable[[], Tensor], b: int) -> Tensor:
    return tokens()[b]


def crop_groups(rule: Callable, crops: list[int], is_image: Tensor, tokens: Callable) -> list[CropGroup]:
    """The images that crops form, in the order of the crops. rule: `Family.image_groups`, asked once for each prompt
    (beams repeat prompts). crops: tokens of each; is_image [B, L] bool (host): the placeholders; tokens: gives the ids
    [B, L] (host)."""
    _, sources, places = image_runs(is_image, crops)
    source, groups, known = iter(sources), [], 0
    for b, parts in enumerate(places):
        numbers = [next(source) for _ in parts]
        if numbers and numbers[0] == known:
            groups += rule(parts, functools.partial(_row, tokens, b))
            known += len(numbers)
    return groups


def image_runs(is_image: Tensor, totals: list[int]) -> tuple[list[list[int]], list[int], list[list[Tensor]]]:
    """requests, source and places on the host, see `Placement`. is_image [B, L] bool (host)."""
    rows = [row.nonzero().flatten() for row in is_image]
    count, available = sum(len(r) for r in rows), sum(totals)
    if not available or count % available:
        raise PatchError(
            f"the prompts hold {count} image tokens, the encoder gave {available}; possible: equal numbers"
        )
    copies = count // available
    requests, source, places, cursor = [], [], [], 0
    for b, row in enumerate(rows):
        if b % copies == 0:
            start = cursor
        cursor, prompt_images, prompt_places, remaining = start, [], [], row
        while len(remaining):
            if cursor >= len(totals) or totals[cursor] > len(remaining):
                raise PatchError(f"prompt {b} holds {len(row)} image tokens, which are not those of the next images")
            prompt_places.append(remaining[: totals[cursor]])
            remaining = remaining[totals[cursor] :]
            prompt_images.append(len(source))
            source.append(cursor)
            cursor += 1
        requests.append(prompt_images)
        places.append(prompt_places)
    return requests, source, places
