"""One view of one step as pixels: kept tokens bright and outlined, merged ones tinted, dropped ones darkened."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

from vtc.eval.inspect.record import DROPPED, GONE, KEPT, MERGED, Outcome
from vtc.eval.inspect.style import (
    ACCENT,
    DEEPEST,
    DIM,
    SHADE,
    TINT,
    UNSEEN,
    Color,
    group_color,
    groups,
    inner,
    is_cut,
    seen,
)


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """The picture with `side` pixels on its longer side."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def paint(picture: Image.Image, record: Mapping, view: Mapping, outcome: Outcome | None) -> np.ndarray:
    """RGB uint8 [H, W, 3]: the picture (of any size) with a step's outcome drawn over a view; outcome None: only what
    lies outside all crops is marked."""
    canvas = np.asarray(picture, dtype=np.float32).copy()
    high, wide = canvas.shape[:2]
    scale = np.array([wide / record["picture"]["width"], high / record["picture"]["height"]] * 2)

    def pixels(boxes: object) -> np.ndarray:
        return np.rint(np.asarray(boxes, dtype=float) * scale).astype(int)

    if is_cut(record, view):
        _veil(canvas, pixels([seen(view)])[0])
    if outcome is None:
        return canvas.astype(np.uint8)
    places, boxes = np.array(view["offsets"]), pixels(view["boxes"])
    colors, state = groups(outcome), outcome.state[places]
    for place, kind, box in zip(places.tolist(), state.tolist(), boxes.tolist()):
        if kind == MERGED:
            _cover(canvas, box, *DIM)
            _cover(canvas, box, colors[int(outcome.into[place])], TINT)
        elif kind != KEPT:
            _cover(canvas, box, *SHADE[kind])
    crops = pixels(view["crops"])
    if len(crops) > 1:
        for box in crops.tolist():
            _frame(canvas, box, (255, 255, 255), 1, 0.35)
    line = max(1, round(max(high, wide) / 260))
    for place, box in zip(places.tolist(), boxes.tolist()):
        for number, aim in enumerate(outcome.also.get(place, ())[:DEEPEST], 1):
            _frame(canvas, inner(box, number, 2 * line), colors[aim], line)
    for place, kind, box in zip(places.tolist(), state.tolist(), boxes.tolist()):
        if kind == KEPT and place not in colors:
            _frame(canvas, box, ACCENT, line)
    for place, box in zip(places.tolist(), boxes.tolist()):
        if place in colors:
            _frame(canvas, box, (0, 0, 0), line + 2)
            _frame(canvas, box, colors[place], line + 1)
        if place in outcome.summaries:
            _cross(canvas, box, ACCENT, line)
    return canvas.clip(0, 255).astype(np.uint8)


def swatch(kind: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Face and edge colour of a legend entry, each channel in [0, 1], over mid grey."""
    grey = np.array([150.0] * 3)
    if kind in (GONE, DROPPED):
        color, alpha = SHADE[kind]
        face = grey * (1 - alpha) + np.array(color) * alpha
        return tuple(face / 255), tuple(face / 255)
    if kind in (MERGED, "several"):
        color, alpha = DIM
        grey, face = grey * (1 - alpha) + np.array(color) * alpha, np.array(group_color(0))
        edge = face if kind == MERGED else np.array(group_color(1))
        return tuple((grey * (1 - TINT) + face * TINT) / 255), tuple(edge / 255)
    if kind == "unseen":
        return (0.93, 0.93, 0.93), (0.7, 0.7, 0.7)
    return tuple(grey / 255), tuple(np.array(ACCENT) / 255)


def _cover(canvas: np.ndarray, box: list[int], color: Color, alpha: float) -> None:
    left, top, right, bottom = box
    part = canvas[top:bottom, left:right]
    part += (np.array(color, dtype=np.float32) - part) * alpha


def _frame(canvas: np.ndarray, box: list[int], color: Color, line: int, alpha: float = 1.0) -> None:
    left, top, right, bottom = box
    line = max(1, min(line, (right - left) // 2, (bottom - top) // 2))
    if right <= left or bottom <= top:
        return
    for part in (
        (left, top, right, top + line), (left, bottom - line, right, bottom),
        (left, top + line, left + line, bottom - line), (right - line, top + line, right, bottom - line),
    ):  # fmt: skip
        _cover(canvas, list(part), color, alpha)


def _cross(canvas: np.ndarray, box: list[int], color: Color, line: int) -> None:
    left, top, right, bottom = box
    for t in np.linspace(0, 1, 4 * max(right - left, bottom - top, 1)):
        for x in (left + t * (right - left - line), right - line - t * (right - left - line)):
            y = top + t * (bottom - top - line)
            _cover(canvas, [int(x), int(y), int(x) + line, int(y) + line], color, 1.0)


def _veil(canvas: np.ndarray, box: np.ndarray) -> None:
    """Makes everything outside the box pale and striped."""
    high, wide = canvas.shape[:2]
    outside = np.ones((high, wide), bool)
    outside[box[1] : box[3], box[0] : box[2]] = False
    rows, across = np.indices((high, wide))
    period = max(8, max(high, wide) // 40)
    stripes = (rows + across) % period < max(1, period // 5)
    color, alpha = UNSEEN
    for mask, tone, opacity in ((outside, color, alpha), (outside & stripes, (120, 120, 120), 0.5)):
        canvas[mask] += (np.array(tone, dtype=np.float32) - canvas[mask]) * opacity
