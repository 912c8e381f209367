"""Questions that have exactly one right answer in a clip, six types; all but the first need several frames.

| type | example | answers |
|---|---|---|
| color | What color is the ring? | six colours; of an object that every frame shows |
| direction | Which way did the red circle move? | left, right, up, down |
| appear | What appeared? | thirty objects, as in "red circle"; asked where exactly one appeared |
| disappear | What disappeared? | the same |
| count | How many objects appeared? How many objects disappeared? | 0 to 3 |
| order | What appeared first? What appeared last? What disappeared first? What disappeared last? | thirty objects |
"""

from collections import Counter

from vtc.demo.questions import Question
from vtc.demo.scenes import COLORS, SHAPES
from vtc.demo.video.clip_scenes import FRAMES, Actor, ClipScene

CLIP_TYPES = ("color", "direction", "appear", "disappear", "count", "order")
DIRECTIONS = ("left", "right", "up", "down")
MAX_EVENTS = 3
CLIP_ANSWERS = {
    "color": COLORS,
    "direction": DIRECTIONS,
    "appear": tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS),
    "count": tuple(str(n) for n in range(MAX_EVENTS + 1)),
}
CLIP_ANSWERS |= {"disappear": CLIP_ANSWERS["appear"], "order": CLIP_ANSWERS["appear"]}
NEW_WORDS = ("which", "way", "did", "move", "up", "down", "appeared", "disappeared", "first", "last")


def _named(actor: Actor) -> str:
    return f"{COLORS[actor.item.color]} {SHAPES[actor.item.shape]}"


def _events(clip: ClipScene) -> dict[str, list[Actor]]:
    """What appeared and what disappeared, each in the order in which it happened."""
    appeared = sorted((a for a in clip.actors if a.first > 0), key=lambda a: a.first)
    disappeared = sorted((a for a in clip.actors if a.stop < FRAMES), key=lambda a: a.stop)
    return {"appeared": appeared, "disappeared": disappeared}


def _colors(clip: ClipScene) -> list[tuple[str, str]]:
    shapes = Counter(a.item.shape for a in clip.actors)
    seen = [a for a in clip.actors if shapes[a.item.shape] == 1 and a.first == 0 and a.stop == FRAMES]
    return [(f"What color is the {SHAPES[a.item.shape]}?", COLORS[a.item.color]) for a in seen]


def _directions(clip: ClipScene) -> list[tuple[str, str]]:
    return [(f"Which way did the {_named(a)} move?", DIRECTIONS[a.way]) for a in clip.actors if a.moves]


def _appeared(clip: ClipScene) -> list[tuple[str, str]]:
    actors = _events(clip)["appeared"]
    return [("What appeared?", _named(actors[0]))] if len(actors) == 1 else []


def _disappeared(clip: ClipScene) -> list[tuple[str, str]]:
    actors = _events(clip)["disappeared"]
    return [("What disappeared?", _named(actors[0]))] if len(actors) == 1 else []


def _counts(clip: ClipScene) -> list[tuple[str, str]]:
    return [(f"How many objects {event}?", str(len(actors))) for event, actors in _events(clip).items()]


def _orders(clip: ClipScene) -> list[tuple[str, str]]:
    several = {event: actors for event, actors in _events(clip).items() if len(actors) > 1}
    ends = (("first", 0), ("last", -1))
    return [(f"What {event} {end}?", _named(actors[i])) for event, actors in several.items() for end, i in ends]


_MAKERS = dict(zip(CLIP_TYPES, (_colors, _directions, _appeared, _disappeared, _counts, _orders), strict=True))


def clip_candidates(clip: ClipScene, type: str) -> list[Question]:
    """Every question of one type about a clip, in a fixed order; may be empty.

    Raises KeyError for a type that is not in CLIP_TYPES.
    """
    return [Question(text, answer, type) for text, answer in _MAKERS[type](clip)]


def ask_clip(clip: ClipScene, type: str, rng) -> Question | None:
    """One question of a type at random, None if the clip allows none. `rng` is a numpy Generator."""
    questions = clip_candidates(clip, type)
    return questions[int(rng.integers(len(questions)))] if questions else None
