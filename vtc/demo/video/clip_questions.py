"""Questions that have exactly one right answer in a clip, five types; all but the first need several frames.

| type | example | answers |
|---|---|---|
| color | What color is the ring? | six colours; of an object that every frame shows |
| direction | Which way did the red circle move? | left, right, up, down |
| appear | What appeared? | thirty objects, as in "red circle"; asked where exactly one appeared |
| count | How many objects appeared? | 0 to 3 |
| order | What appeared first? What appeared last? | thirty objects; asked where two or three appeared |
"""

from collections import Counter

from vtc.demo.questions import Question
from vtc.demo.scenes import COLORS, SHAPES
from vtc.demo.video.clip_scenes import FRAMES, Actor, ClipScene

CLIP_TYPES = ("color", "direction", "appear", "count", "order")
DIRECTIONS = ("left", "right", "up", "down")
MAX_EVENTS = 3
CLIP_ANSWERS = {
    "color": COLORS,
    "direction": DIRECTIONS,
    "appear": tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS),
    "count": tuple(str(n) for n in range(MAX_EVENTS + 1)),
}
CLIP_ANSWERS |= {"order": CLIP_ANSWERS["appear"]}
NEW_WORDS = ("which", "way", "did", "move", "up", "down", "appeared", "disappeared", "first", "last")


def _named(actor: Actor) -> str:
    return f"{COLORS[actor.item.color]} {SHAPES[actor.item.shape]}"


def appearing(clip: ClipScene) -> list[Actor]:
    """What appeared, in the order in which it did."""
    return sorted((actor for actor in clip.actors if actor.first > 0), key=lambda actor: actor.first)


def disappearing(clip: ClipScene) -> list[Actor]:
    """What disappeared, in the order in which it did."""
    return sorted((actor for actor in clip.actors if actor.stop < FRAMES), key=lambda actor: actor.stop)


def _colors(clip: ClipScene) -> list[tuple[str, str]]:
    shapes = Counter(a.item.shape for a in clip.actors)
    seen = [a for a in clip.actors if shapes[a.item.shape] == 1 and a.first == 0 and a.stop == FRAMES]
    return [(f"What color is the {SHAPES[a.item.shape]}?", COLORS[a.item.color]) for a in seen]


def _directions(clip: ClipScene) -> list[tuple[str, str]]:
    return [(f"Which way did the {_named(a)} move?", DIRECTIONS[a.way]) for a in clip.actors if a.moves]


def _appeared(clip: ClipScene) -> list[tuple[str, str]]:
    actors = appearing(clip)
    return [("What appeared?", _named(actors[0]))] if len(actors) == 1 else []


def _counts(clip: ClipScene) -> list[tuple[str, str]]:
    return [("How many objects appeared?", str(len(appearing(clip))))]


def _orders(clip: ClipScene) -> list[tuple[str, str]]:
    actors = appearing(clip)
    if len(actors) < 2:
        return []
    return [("What appeared first?", _named(actors[0])), ("What appeared last?", _named(actors[-1]))]


_MAKERS = dict(zip(CLIP_TYPES, (_colors, _directions, _appeared, _counts, _orders), strict=True))


def clip_candidates(clip: ClipScene, type: str) -> list[Question]:
    """Every question of one type about a clip, in a fixed order; may be empty.

    Raises KeyError for a type that is not in CLIP_TYPES.
    """
    return [Question(text, answer, type) for text, answer in _MAKERS[type](clip)]


def ask_clip(clip: ClipScene, type: str, rng) -> Question | None:
    """One question of a type at random, None if the clip allows none. `rng` is a numpy Generator."""
    questions = clip_candidates(clip, type)
    return questions[int(rng.integers(len(questions)))] if questions else None
