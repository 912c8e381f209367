"""Procedural scenes: where things are (`scene`), what they look like (`draw`), what each patch holds (`patch_labels`).

A scene is a pure function of (split, index). Layout and pixels use integer arithmetic and `Generator.integers` only,
with own shapes and own digit glyphs, so that images are the same bytes whatever font, Pillow or maths library there is.
Example: `draw(scene("test", 0))` is a uint8 array [112, 112, 3].
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIZE = 112  # image side in pixels
PATCH = 8  # patch side in pixels
GRID = SIZE // PATCH  # patches a side; GRID * GRID = 196 visual tokens
SPLITS = {"train": 0, "tune": 1, "test": 2}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
_RGB = ((214, 48, 48), (48, 172, 62), (52, 84, 226), (226, 204, 44), (156, 58, 192), (48, 204, 214))
_SEED = 20480  # first word of every seed, so that no other generator in the process shares a stream
_NUMBER_W, _NUMBER_H = 24, 16  # two glyphs of 10 x 14 pixels, a gap of 2 and a rim of 1
_GLYPHS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 10100 00100 00100 00100 11111",
    "01110 10001 00001 00110 01000 10000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)


@dataclass(frozen=True)
class Item:
    """One object: indices into SHAPES and COLORS, centre and side in pixels."""

    shape: int
    color: int
    x: int
    y: int
    size: int


@dataclass(frozen=True)
class Scene:
    """A layout: 3-6 items and one two-digit number whose top-left corner is at (number_x, number_y) pixels."""

    split: str
    index: int
    items: tuple[Item, ...]
    number: tuple[int, int]
    number_x: int
    number_y: int
    clutter: tuple[tuple[int, int, int, int], ...]  # left, top, width, height in pixels; no objects

    @property
    def number_center(self) -> tuple[int, int]:
        """Middle of the number, (x, y) in pixels."""
        return self.number_x + _NUMBER_W // 2, self.number_y + _NUMBER_H // 2


def place(rng, occupied: list, width: int, height: int, gap: int) -> tuple[int, int, int, int] | None:
    """A free box (left, top, width, height) at least `gap` pixels from the taken ones, or None after 40 tries."""
    for _ in range(40):
        left, top = int(rng.integers(1, SIZE - width)), int(rng.integers(1, SIZE - height))
        if all(
            left >= x + w + gap or x >= left + width + gap or top >= y + h + gap or y >= top + height + gap
            for x, y, w, h in occupied
        ):
            return left, top, width, height
    return None


def scene(split: str, index: int) -> Scene:
    """The layout of scene `index` of `split`.

    Raises KeyError for a split other than train, tune and test, ValueError for a negative index.
    """
    if index < 0:
        raise ValueError(f"scene index must be >= 0, got {index}")
    rng = np.random.default_rng([_SEED, SPLITS[split], index, 0])
    number = tuple(int(d) for d in rng.integers(0, 10, 2))
    occupied = [place(rng, [], _NUMBER_W, _NUMBER_H, 0)]
    # A favoured shape or colour in some scenes lets counts go past one.
    shape = int(rng.integers(len(SHAPES))) if rng.integers(100) < 45 else None
    color = int(rng.integers(len(COLORS))) if rng.integers(100) < 45 else None
    items = []
    for _ in range(int(rng.integers(3, 7))):
        side = 11 + 2 * int(rng.integers(3))
        box = place(rng, occupied, side, side, 3)
        other_shape, other_color = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLORS)))
        favoured = rng.integers(100, size=2) < 60
        if box is None:
            continue
        occupied.append(box)
        items.append(
            Item(
                shape if shape is not None and favoured[0] else other_shape,
                color if color is not None and favoured[1] else other_color,
                box[0] + side // 2,
                box[1] + side // 2,
                side,
            )
        )
    clutter = []
    for _ in range(int(rng.integers(3, 8))):
        width, height = (int(v) for v in rng.integers(9, 25, 2))
        box = place(rng, occupied, width, height, 1)
        if box is not None:
            occupied.append(box)
            clutter.append(box)
    return Scene(split, index, tuple(items), number, occupied[0][0], occupied[0][1], tuple(clutter))


@lru_cache(maxsize=64)
def coverage(shape: int, side: int) -> np.ndarray:
    """Sixteenths of each pixel that a shape covers, uint8 [side, side], from 4 x 4 sample points a pixel."""
    axis = 2 * np.arange(4 * side) + 1 - 4 * side  # eighths of a pixel from the centre
    u, v, r = axis[None, :], axis[:, None], 4 * side
    radius = u * u + v * v
    mask = (
        radius <= r * r,
        8 * np.maximum(abs(u), abs(v)) <= 7 * r,
        2 * abs(u) <= v + r,
        3 * np.minimum(abs(u), abs(v)) + 0 * radius <= r,
        (radius <= r * r) & (10 * radius >= 3 * r * r),
    )[shape]
    return mask.reshape(side, 4, side, 4).sum((1, 3)).astype(np.uint8)


@lru_cache(maxsize=16)
def _glyph(digit: int) -> np.ndarray:
    """Strokes of a digit at twice its 5 x 7 bitmap, bool [14, 10]."""
    rows = [[bit == "1" for bit in row] for row in _GLYPHS[digit].split()]
    return np.kron(np.array(rows), np.ones((2, 2), bool)).astype(bool)


def blend(image: np.ndarray, left: int, top: int, sixteenths: np.ndarray, color: np.ndarray) -> None:
    """Paint `color` ([3] or [h, w, 3]) over a box of `image` in place, with cover in sixteenths [h, w]."""
    height, width = sixteenths.shape
    view = image[top : top + height, left : left + width]
    cover = sixteenths[..., None].astype(np.int32)
    view[:] = (view * (16 - cover) + color * cover + 8) // 16


def _stripes(rng, height: int, width: int) -> np.ndarray:
    """A triangle wave in a random direction, int32 [height, width], -64 to 64."""
    a, b = (int(v) for v in rng.integers(-7, 8, 2))
    period = int(rng.integers(30, 90))
    phase = (np.arange(width)[None] * a + np.arange(height)[:, None] * b) % period
    return abs(phase * 2 - period) * 128 // period - 64


def _muted(rng) -> np.ndarray:
    """A greyish colour, int32 [3]."""
    return rng.integers(70, 180) + rng.integers(-16, 17, 3)


def _draw_clutter(rng, image: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Paint one ragged, textured, greyish blob into `image` in place."""
    left, top, width, height = box
    u = abs(2 * np.arange(width) + 1 - width)[None, :] * 16 // width
    v = abs(2 * np.arange(height) + 1 - height)[:, None] * 16 // height
    outline = (u + v < rng.integers(16, 28)) & (rng.integers(0, 16, (height, width)) + np.maximum(u, v) < 24)
    kind = int(rng.integers(3))
    if kind == 0:
        pattern = _stripes(rng, height, width) > 0
    elif kind == 1:
        cell = int(rng.integers(2, 5))
        pattern = (np.arange(width)[None] // cell + np.arange(height)[:, None] // cell) % 2 == 0
    else:
        pattern = rng.integers(0, 2, (height, width)) == 0
    color = np.where(pattern[..., None], _muted(rng), _muted(rng))
    blend(image, left, top, outline * np.uint8(rng.integers(10, 17)), color)


def draw_background(rng, clutter: tuple[tuple[int, int, int, int], ...]) -> np.ndarray:
    """A gradient with stripes and these boxes of clutter, int32 [112, 112, 3]."""
    start, stop = _muted(rng), _muted(rng)
    gx, gy = (int(v) for v in rng.integers(0, 8, 2))
    axis = np.arange(SIZE, dtype=np.int32)
    ramp = ((axis[None] * gx + axis[:, None] * gy) * 256 // (SIZE * max(gx + gy, 1)))[..., None]
    image = (start * (256 - ramp) + stop * ramp) // 256
    image = image + (_stripes(rng, SIZE, SIZE) * int(rng.integers(2, 13)) // 64)[..., None]
    for box in clutter:
        _draw_clutter(rng, image, box)
    return image


def own_color(rng, color: int) -> np.ndarray:
    """A colour of COLORS as one object has it, int64 [3]."""
    return np.array(_RGB[color]) + rng.integers(-14, 15, 3)


def draw_item(image: np.ndarray, item: Item, color: np.ndarray) -> None:
    """Paint an object in a colour [3] into `image` in place."""
    half = item.size // 2
    blend(image, item.x - half, item.y - half, coverage(item.shape, item.size), color)


def draw(scene: Scene) -> np.ndarray:
    """The pixels of a scene, uint8 [112, 112, 3]."""
    rng = np.random.default_rng([_SEED, SPLITS[scene.split], scene.index, 1])
    image = draw_background(rng, scene.clutter)
    for item in scene.items:
        draw_item(image, item, own_color(rng, item.color))
    for slot, digit in enumerate(scene.number):
        strokes = np.pad(_glyph(digit), 1)
        rim = np.zeros_like(strokes)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                rim |= np.roll(strokes, (dy, dx), (0, 1))
        left = scene.number_x + 12 * slot
        blend(image, left, scene.number_y, rim * np.uint8(16), np.array((24, 24, 24)))
        blend(image, left, scene.number_y, strokes * np.uint8(16), np.array((244, 244, 244)))
    image = image + rng.integers(-7, 8, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def patch_labels(scene: Scene) -> np.ndarray:
    """What each of the 196 patches holds, int16 [196, 6], -1 where a column does not apply.

    Columns: kind (0 background, 1-5 shape, 6 digit), colour, digit (value, plus 10 in the units place), holds the
    centre of an object or digit (0 or 1), and the pixels from the patch centre to that centre, in x and in y.
    A patch belongs to what covers most of it, at least 6 of its 64 pixels. Clutter is background.
    """
    covers, facts = [], []
    for item in scene.items:
        cover, half = np.zeros((SIZE, SIZE), bool), item.size // 2
        box = cover[item.y - half : item.y + half + 1, item.x - half : item.x + half + 1]
        box[:] = coverage(item.shape, item.size) >= 8
        covers.append(cover)
        facts.append((item.shape + 1, item.color, -1, item.x, item.y))
    for slot, digit in enumerate(scene.number):
        cover = np.zeros((SIZE, SIZE), bool)
        left, top = scene.number_x + 12 * slot + 1, scene.number_y + 1
        cover[top : top + 14, left : left + 10] = _glyph(digit)
        covers.append(cover)
        facts.append((6, -1, digit + 10 * slot, left + 5, top + 7))
    pixels = np.stack(covers).reshape(-1, GRID, PATCH, GRID, PATCH).sum((2, 4)).reshape(-1, GRID * GRID)
    owner, owned = pixels.argmax(0), pixels.max(0) >= 6
    kind, color, digit, x, y = np.array(facts).T
    middle = np.arange(GRID) * PATCH + PATCH // 2
    columns, rows = np.tile(middle, GRID), np.repeat(middle, GRID)
    labels = np.stack(
        (kind[owner], color[owner], digit[owner], 0 * owner, x[owner] - columns, y[owner] - rows), axis=1
    ).astype(np.int16)
    labels[~owned] = (0, -1, -1, 0, -1, -1)
    labels[(y // PATCH) * GRID + x // PATCH, 3] = 1
    return labels
