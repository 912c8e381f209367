"""Colours and words that the figure and the page share."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np

from vtc.eval.inspect.record import DROPPED, GONE, IN_ENCODER, KEPT, MERGED, Outcome

Color = tuple[int, int, int]
ACCENT: Color = (255, 196, 0)  # outline of kept tokens
SHADE: dict[int, tuple[Color, float]] = {GONE: ((8, 10, 16), 0.9), DROPPED: ((30, 34, 48), 0.78)}  # colour, opacity
UNSEEN: tuple[Color, float] = ((255, 255, 255), 0.72)
TINT = 0.34  # opacity of a merged token's colour, drawn over DIM
DIM: tuple[Color, float] = ((8, 10, 16), 0.6)
LEGEND = (
    ("stays", KEPT),
    ("flows into the outlined token of its colour", MERGED),
    ("thin inner line: flows into that one, too", "several"),
    ("dropped here", DROPPED),
    ("dropped before", GONE),
    ("cut off: no token shows it", "unseen"),
    ("[CLS] stands here, not this patch", "summary"),
)
UNTOUCHED = "nothing is dropped here"
DEEPEST = 3  # inner lines of one token at most
_GOLDEN = 0.61803398875


def group_color(rank: int) -> Color:
    """The colour of the rank-th token that others flow into: neighbours in rank differ in hue and in strength."""
    hue = 0.52 + rank * _GOLDEN
    value, saturation = ((1.0, 0.8), (0.9, 1.0), (1.0, 0.5))[rank % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def groups(outcome: Outcome) -> dict[int, Color]:
    """The tokens that others flow into, with their colours."""
    return {place: group_color(rank) for place, rank in outcome.ranks.items()}


def inner(box: Sequence[float], number: int, step: float) -> list[float]:
    """The box of a token's inner line, numbered from 1: as many steps within the token's own."""
    left, top, right, bottom = box
    by = min(number * step, (right - left) / 2, (bottom - top) / 2)
    return [left + by, top + by, right - by, bottom - by]


def column_title(key: tuple[int | None, int]) -> str:
    """The heading of a column."""
    if key[0] == IN_ENCODER:
        return "in the encoder"
    return "at the projector" if key[0] is None else f"before layer {key[0]}"


def caption(outcome: Outcome, views: Sequence[Mapping]) -> str:
    """The counts of a step in words. What no view shows are row ends."""
    parts = [f"{outcome.step['after']} of {outcome.step['before']} stay"]
    if outcome.merged:
        parts.append(f"{outcome.merged} flow into {outcome.targets} of them")
    if outcome.several:
        parts.append(f"{outcome.several} into several")
    if outcome.summaries:
        parts.append("[CLS] is one" if len(outcome.summaries) == 1 else f"{len(outcome.summaries)} are [CLS]")
    ends = len(set(outcome.step["kept"]).difference(*(view["offsets"] for view in views)))
    if ends:
        parts.append(f"{ends} are row ends")
    return ", ".join(parts)


def clip_words(record: Mapping) -> list[str]:
    """How many pictures form how many frames of a clip; nothing for a picture."""
    size = record["picture"]
    if "frames" not in size:
        return []
    return [f"{size['pictures']} pictures as {size['frames']} frame{'s' if size['frames'] > 1 else ''}"]


def frame_words(view: Mapping, outcome: Outcome) -> str:
    """A frame of a clip, and how many of its tokens stay."""
    stay = len(set(outcome.step["kept"]) & set(view["offsets"]))
    return f"{view['name']}: {stay} of {len(view['offsets'])}"


def budget(run: Mapping, tokens: int) -> tuple[str, str]:
    """The requested budget, and the share of tokens that was kept."""
    requested = "its stages' own budgets" if run["keep"] is None else f"keep {run['keep']} asked"
    share = run["average"] / tokens
    return requested, f"{run['average']:.1f} of {tokens} tokens in the average layer ({share:.1%})"


def verdict(record: Mapping, run: Mapping) -> tuple[bool, str]:
    """Whether a run's answer equals the full model's, as a bool and in words."""
    same = run["answer"] == record["full"]["answer"]
    return same, "same as the full model" if same else "differs from the full model"


def quoted(text: str) -> str:
    """An answer as it is shown."""
    return f"“{text}”" if text else "(nothing)"


def used(record: Mapping, outcome_rows: list[list[Outcome]]) -> list[tuple[str, object]]:
    """The legend entries that occur in the pictures."""
    states = set()
    for outcome in (outcome for row in outcome_rows for outcome in row):
        states |= set(np.unique(outcome.state).tolist())
        states |= {"summary"} if outcome.summaries else set()
        states |= {"several"} if outcome.also else set()
    if any(is_cut(record, view) for view in record["views"]):
        states.add("unseen")
    return [entry for entry in LEGEND if entry[1] in states]


def is_cut(record: Mapping, view: Mapping) -> bool:
    """Whether some part of the picture lies outside all crops of a view."""
    left, top, right, bottom = seen(view)
    size = record["picture"]
    return left > 0.5 or top > 0.5 or right < size["width"] - 0.5 or bottom < size["height"] - 0.5


def seen(view: Mapping) -> tuple[float, float, float, float]:
    """The box around all crops of a view."""
    crops = np.array(view["crops"])
    return (*crops[:, :2].min(0).tolist(), *crops[:, 2:].max(0).tolist())
