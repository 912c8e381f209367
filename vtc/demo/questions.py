"""Questions that have exactly one right answer in a scene, seven types, and their vocabulary.

| type | example | answers |
|---|---|---|
| color | What color is the ring? | six colours |
| shape | What shape is the red object? | five shapes |
| exist | Is there a red circle? | yes, no |
| position | Where is the red circle? | top left, top right, bottom left, bottom right |
| count | How many circles are there? How many red objects are there? | 0 to 3 |
| ocr | What number is written? | 00 to 99 |
| relation | Where is the red circle seen from the blue square? From the number? | as for position |
"""

from collections import Counter
from itertools import permutations
from typing import NamedTuple

import numpy as np

from vtc.demo.scenes import COLORS, SHAPES, SIZE, Item, Scene

TYPES = ("color", "shape", "exist", "position", "count", "ocr", "relation")
YES_NO = ("no", "yes")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
MIDLINE_MARGIN = 6  # pixels that a centre must be away from both midlines to have a corner
RELATION_MARGIN = 10  # pixels by which two centres must differ along both axes
MAX_COUNT = 3
ANSWERS = {
    "color": COLORS,
    "shape": SHAPES,
    "exist": YES_NO,
    "position": CORNERS,
    "count": tuple(str(n) for n in range(MAX_COUNT + 1)),
    "ocr": tuple(f"{n:02d}" for n in range(100)),
    "relation": CORNERS,
}
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses", "ring": "rings"}


class Question(NamedTuple):
    """A question as a person would write it, its only right answer, and its type (one of TYPES)."""

    text: str
    answer: str
    type: str


def _name(item: Item) -> str:
    return f"{COLORS[item.color]} {SHAPES[item.shape]}"


def _unique(scene: Scene) -> list[Item]:
    """The items whose colour and shape together name them and nothing else."""
    counts = Counter((item.color, item.shape) for item in scene.items)
    return [item for item in scene.items if counts[item.color, item.shape] == 1]


def _color(scene: Scene) -> list[tuple[str, str]]:
    counts = Counter(item.shape for item in scene.items)
    return [(f"What color is the {SHAPES[i.shape]}?", COLORS[i.color]) for i in scene.items if counts[i.shape] == 1]


def _shape(scene: Scene) -> list[tuple[str, str]]:
    counts = Counter(item.color for item in scene.items)
    return [
        (f"What shape is the {COLORS[i.color]} object?", SHAPES[i.shape]) for i in scene.items if counts[i.color] == 1
    ]


def _exist(scene: Scene) -> list[tuple[str, str]]:
    pairs = {(item.color, item.shape) for item in scene.items}
    colors, shapes = {c for c, _ in pairs}, {s for _, s in pairs}
    questions = []
    for c, color in enumerate(COLORS):
        for s, shape in enumerate(SHAPES):
            # Hard negatives, a present colour with a present shape, stand three times: they are asked more often.
            copies = 3 if (c in colors and s in shapes) else 1
            questions += [(f"Is there a {color} {shape}?", YES_NO[(c, s) in pairs])] * copies
    return questions


def _position(scene: Scene) -> list[tuple[str, str]]:
    questions = []
    for item in _unique(scene):
        x, y = 2 * item.x + 1 - SIZE, 2 * item.y + 1 - SIZE
        if min(abs(x), abs(y)) >= 2 * MIDLINE_MARGIN:
            questions.append((f"Where is the {_name(item)}?", CORNERS[2 * (y > 0) + (x > 0)]))
    return questions


def _count(scene: Scene) -> list[tuple[str, str]]:
    shapes, colors = Counter(i.shape for i in scene.items), Counter(i.color for i in scene.items)
    questions = [(f"How many {PLURALS[name]} are there?", shapes[s]) for s, name in enumerate(SHAPES)]
    questions += [(f"How many {name} objects are there?", colors[c]) for c, name in enumerate(COLORS)]
    return [(text, str(number)) for text, number in questions if number <= MAX_COUNT]


def _ocr(scene: Scene) -> list[tuple[str, str]]:
    return [("What number is written?", "{}{}".format(*scene.number))]


def _relation(scene: Scene) -> list[tuple[str, str]]:
    things = [(f"the {_name(item)}", item.x, item.y) for item in _unique(scene)]
    # The number, easiest to find, stands three times so that it is asked about in nearly half of the questions.
    pairs = list(permutations(things, 2))
    pairs += [(thing, ("the number", *scene.number_center)) for thing in things] * 3
    questions = []
    for (a, ax, ay), (b, bx, by) in pairs:
        if min(abs(ax - bx), abs(ay - by)) >= RELATION_MARGIN:
            questions.append((f"Where is {a} seen from {b}?", CORNERS[2 * (ay > by) + (ax > bx)]))
    return questions


_MAKERS = dict(zip(TYPES, (_color, _shape, _exist, _position, _count, _ocr, _relation), strict=True))


def candidates(scene: Scene, type: str) -> list[Question]:
    """Every unambiguous question of one type about a scene, in a fixed order; may be empty.

    Raises KeyError for a type that is not in TYPES.
    """
    return [Question(text, answer, type) for text, answer in _MAKERS[type](scene)]


def ask(scene: Scene, type: str, rng) -> Question | None:
    """One question of a type, its answer drawn first among those that the scene allows; None if it allows none.

    Answers are drawn evenly, counts in proportion to 1 + count, since high counts are rare. `rng` is a numpy Generator.
    """
    by_answer: dict[str, list[Question]] = {}
    for question in candidates(scene, type):
        by_answer.setdefault(question.answer, []).append(question)
    if not by_answer:
        return None
    chances = np.array([1 + int(answer) if type == "count" else 1 for answer in by_answer])
    fitting = list(by_answer.values())[rng.choice(len(by_answer), p=chances / chances.sum())]
    return fitting[int(rng.integers(len(fitting)))]


def largest_count(scene: Scene) -> int:
    """The highest number of objects of one shape or of one colour, an answer of type count where at most MAX_COUNT."""
    shapes, colors = Counter(item.shape for item in scene.items), Counter(item.color for item in scene.items)
    return max(max(shapes.values(), default=0), max(colors.values(), default=0))


def vocabulary() -> list[str]:
    """The lower-case words of all questions and answers, sorted, without digits and punctuation."""
    text = "what color is the shape object there a where how many are objects number written seen from"
    words = set(text.split()) | set(COLORS) | set(SHAPES) | set(PLURALS.values()) | set(YES_NO)
    for phrase in CORNERS:
        words |= set(phrase.split())
    return sorted(words)
