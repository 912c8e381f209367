"""Procedural clips: what happens (`clip_scene`), how it looks (`draw_frames`), what each cell holds (`cell_labels`).

Objects of the still scenes (`vtc.demo.scenes`) on the same kind of cluttered background. Some move along a straight
line, some appear, some disappear, the rest stay. No two objects of a clip share colour and shape, none cover each
other, and every appearance and disappearance has a frame of its own. The background stands still; brightness and noise
differ from frame to frame. A clip is a pure function of (split, index), by integer arithmetic only.
"""

from dataclasses import dataclass, replace

import numpy as np

from vtc.demo.scenes import COLORS, SHAPES, SIZE, SPLITS, Item, coverage, draw_background, draw_item, own_color, place

FRAMES = 8
CELL = 16  # side in pixels of what one visual token shows: 2 x 2 patches
CELLS = SIZE // CELL  # a side; 7 x 7 = 49 visual tokens a frame
WAYS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # left, right, up, down
STATES = 4 + len(WAYS)  # background, still, moving (each way), appeared, gone
STILL, MOVING, APPEARED, GONE = 1, 2, 2 + len(WAYS), 3 + len(WAYS)
_SEED = 20482  # first word of every seed of clips


@dataclass(frozen=True)
class Actor:
    """One object: as in the first frame that shows it, its way per frame in pixels, and the frames [first, stop) that
    show it."""

    item: Item
    dx: int = 0
    dy: int = 0
    first: int = 0
    stop: int = FRAMES

    @property
    def moves(self) -> bool:
        """Whether it changes its place."""
        return bool(self.dx or self.dy)

    @property
    def way(self) -> int:
        """Index into WAYS; for an object that moves."""
        return WAYS.index((int(np.sign(self.dx)), int(np.sign(self.dy))))

    def at(self, frame: int) -> Item:
        """The object where it is in a frame; it moves in all frames or in none."""
        return replace(self.item, x=self.item.x + frame * self.dx, y=self.item.y + frame * self.dy)

    def backwards(self) -> "Actor":
        """The object in the same clip shown from its end to its start."""
        return Actor(self.at(FRAMES - 1), -self.dx, -self.dy, FRAMES - self.stop, FRAMES - self.first)


@dataclass(frozen=True)
class ClipScene:
    """What happens in a clip. clutter: boxes (left, top, width, height) in pixels, which are no objects."""

    split: str
    index: int
    actors: tuple[Actor, ...]
    clutter: tuple[tuple[int, int, int, int], ...]

    def backwards(self) -> "ClipScene":
        """The clip shown from its end to its start."""
        return replace(self, actors=tuple(actor.backwards() for actor in self.actors))


def clip_scene(split: str, index: int) -> ClipScene:
    """Clip `index` of `split`: 1 or 2 objects move, 1 or 2 stay, up to 3 appear or disappear.

    Raises KeyError for a split other than train, tune and test, ValueError for a negative index.
    """
    if index < 0:
        raise ValueError(f"clip index must be >= 0, got {index}")
    rng = np.random.default_rng([_SEED, SPLITS[split], index, 0])
    while True:
        clip = _try(rng, split, index)
        if clip is not None:
            return clip


def _try(rng, split: str, index: int) -> ClipScene | None:
    """One draw of a clip, None if an object finds no place."""
    movers, still, events = 1 + int(rng.integers(2)), 1 + int(rng.integers(2)), int(rng.integers(4))
    appearing = int(rng.integers(events + 1))
    looks = rng.permutation(len(SHAPES) * len(COLORS))
    times = 1 + rng.permutation(FRAMES - 1)
    occupied: list[tuple[int, int, int, int]] = []
    actors = []
    for number in range(movers + events + still):
        shape, color = divmod(int(looks[number]), len(COLORS))
        side, step = 11 + 2 * int(rng.integers(2)), 4 + int(rng.integers(3))
        way = WAYS[int(rng.integers(4))] if number < movers else (0, 0)
        dx, dy = way[0] * step, way[1] * step
        box = place(rng, occupied, side + abs(dx) * (FRAMES - 1), side + abs(dy) * (FRAMES - 1), 2)
        if box is None:
            return None
        occupied.append(box)
        left, top, width, height = box
        x = left + side // 2 if dx >= 0 else left + width - 1 - side // 2
        y = top + side // 2 if dy >= 0 else top + height - 1 - side // 2
        first, stop = 0, FRAMES
        if movers <= number < movers + appearing:
            first = int(times[number])
        elif movers + appearing <= number < movers + events:
            stop = int(times[number])
        actors.append(Actor(Item(shape, color, x, y, side), dx, dy, first, stop))
    clutter = []
    for _ in range(int(rng.integers(3, 8))):
        width, height = (int(v) for v in rng.integers(9, 25, 2))
        box = place(rng, occupied, width, height, 1)
        if box is not None:
            occupied.append(box)
            clutter.append(box)
    return ClipScene(split, index, tuple(actors), tuple(clutter))


def draw_frames(clip: ClipScene) -> np.ndarray:
    """The pixels of a clip, uint8 [8, 112, 112, 3]."""
    rng = np.random.default_rng([_SEED, SPLITS[clip.split], clip.index, 1])
    background = draw_background(rng, clip.clutter)
    colors = [own_color(rng, actor.item.color) for actor in clip.actors]
    frames = np.empty((FRAMES, SIZE, SIZE, 3), np.uint8)
    for number in range(FRAMES):
        image = background.copy()
        for actor, color in zip(clip.actors, colors, strict=True):
            if actor.first <= number < actor.stop:
                draw_item(image, actor.at(number), color)
        image += int(rng.integers(-4, 5)) + rng.integers(-7, 8, image.shape)
        frames[number] = np.clip(image, 0, 255)
    return frames


def cell_labels(clip: ClipScene) -> np.ndarray:
    """What each visual token holds, int8 [8, 49, 3], -1 where a column does not apply.

    Columns: state (see STATES; what a viewer knows who saw the clip up to this frame), shape, colour. A cell belongs to
    what covers most of it, at least 20 of its 256 pixels; where an object is gone, to that object.
    """
    covers = np.zeros((FRAMES, len(clip.actors), SIZE, SIZE), bool)
    state = np.zeros((FRAMES, len(clip.actors)), np.int8)
    for a, actor in enumerate(clip.actors):
        for frame in range(FRAMES):
            if frame < actor.first:
                continue
            item = actor.at(frame)
            half = item.size // 2
            box = covers[frame, a, item.y - half : item.y + half + 1, item.x - half : item.x + half + 1]
            box[:] = coverage(item.shape, item.size) >= 8
            state[frame, a] = STILL
            if actor.moves:
                state[frame, a] = MOVING + actor.way if frame else -1
            elif frame >= actor.stop:
                state[frame, a] = GONE
            elif actor.first:
                state[frame, a] = APPEARED
    pixels = covers.reshape(FRAMES, -1, CELLS, CELL, CELLS, CELL).sum((3, 5)).reshape(FRAMES, -1, CELLS * CELLS)
    owner, owned = pixels.argmax(1), pixels.max(1) >= 20
    looks = np.array([(actor.item.shape, actor.item.color) for actor in clip.actors], np.int8)
    labels = np.concatenate((np.take_along_axis(state, owner, 1)[..., None], looks[owner]), -1)
    labels[~owned] = (0, -1, -1)
    return labels
