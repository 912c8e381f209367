"""The page: the content of the figure as one self-contained HTML file, for any screen size."""

import base64
import io
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image

from vtc.eval.inspect.record import DROPPED, GONE, KEPT, MERGED, Outcome, across, columns, keys, outcomes
from vtc.eval.inspect.style import (
    ACCENT,
    DEEPEST,
    DIM,
    SHADE,
    TINT,
    UNTOUCHED,
    Color,
    budget,
    caption,
    clip_words,
    column_title,
    frame_words,
    group_color,
    groups,
    inner,
    is_cut,
    quoted,
    seen,
    used,
    verdict,
)  # fmt: skip
from vtc.io.page import render

SWATCH = (1, 1, 9, 9)  # box in a 10 x 10 square
STRIPES = "url(#stripes)"


def page(record: Mapping, picture: Image.Image) -> str:
    """The HTML of a record (see `vtc.eval.inspect.record`) and its picture."""
    outcome_rows = [outcomes(run, record["tokens"]) for run in record["runs"]]
    stages, size = columns(record) or [(None, 0)], record["picture"]
    frames = size.get("frames", 0)
    aspect = size["width"] / size["height"] * (1 if frames else len(record["views"]))
    cell = min(34.0, max(11.0, 15.0 * aspect**0.5))
    legend = [(words, _swatch(kind)) for words, kind in used(record, outcome_rows)]
    runs = [_run(record, run, row, stages) for run, row in zip(record["runs"], outcome_rows)]
    shown = {"about": _about(record), "picture": _encoded(picture), "cell": cell, "frames": frames}
    title = f"vtc inspect: {record['question']}"
    return render(
        __package__,
        "inspect.html.j2",
        title=title,
        record=record,
        runs=runs,
        legend=legend,
        quoted=quoted,
        untouched=UNTOUCHED,
        single=len(stages) == 1,
        **shown,
    )


def _about(record: Mapping) -> str:
    model, size = record["model"], record["picture"]
    about = [f"{model['name'] or model['family']} ({model['family']}, {model['layers']} layers)"]
    about += [*clip_words(record), f"{record['tokens']} visual tokens", f"{size['width']} × {size['height']} pixels"]
    return ", ".join(about + ([size["source"]] if size["source"] else []))


def _encoded(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def _run(record: Mapping, run: Mapping, row: list[Outcome], stages: list) -> dict:
    """A run with its texts, and what it does at each stage, None where it does nothing."""
    same, words = verdict(record, run)
    done = dict(zip(keys(run), row))
    cells = [(column_title(key), _step(record, done[key]) if key in done else None) for key in stages]
    return {**run, "budget": ": ".join(budget(run, record["tokens"])), "same": same, "verdict": words, "cells": cells}


def _step(record: Mapping, outcome: Outcome) -> dict:
    names = ["" if view["name"] == "picture" else f" ({view['name']})" for view in record["views"]]
    clip = "frames" in record["picture"]
    below = [frame_words(view, outcome) if clip else None for view in record["views"]]
    views = [(*texts, _shapes(record, view, outcome)) for *texts, view in zip(names, below, record["views"])]
    counts = {"merged": outcome.merged, "several": outcome.several, "dropped": outcome.dropped}
    flows = across(record, outcome) if clip else []
    return {**outcome.step, **counts, "words": caption(outcome, record["views"]), "views": views, "flows": flows}


def _shapes(record: Mapping, view: Mapping, outcome: Outcome) -> list[dict]:
    """The shapes drawn over a view of the picture, as attributes of SVG paths, bottom layer first."""
    wide, high = record["picture"]["width"], record["picture"]["height"]
    places, boxes, colors = np.array(view["offsets"]), np.array(view["boxes"], dtype=float), groups(outcome)
    state, into = outcome.state[places], outcome.into[places]
    shapes = []
    if is_cut(record, view):
        hole = f"M0 0H{wide}V{high}H0Z{_path([seen(view)])}"
        shapes.append({"d": hole, "fill": STRIPES, "fill-rule": "evenodd"})
    for kind in (GONE, DROPPED):
        shapes.append(_filled(boxes[state == kind], *SHADE[kind]))
    shapes.append(_filled(boxes[state == MERGED], *DIM))
    for place, color in colors.items():
        shapes.append(_filled(boxes[(state == MERGED) & (into == place)], color, TINT))
    plain = [box for box, place, kind in zip(boxes, places, state) if kind == KEPT and int(place) not in colors]
    shapes.append(_lined(plain, ACCENT, 1.5))
    if len(view["crops"]) > 1:
        shapes.append({**_lined(view["crops"], (255, 255, 255), 1), "stroke-opacity": 0.5})
    step = max(wide, high) / 130
    for place, box in zip(places.tolist(), boxes.tolist()):
        for number, aim in enumerate(outcome.also.get(place, ())[:DEEPEST], 1):
            shapes.append(_lined([inner(box, number, step)], colors[aim], 1))
    for place, color in colors.items():
        target = boxes[places == place]
        shapes += [_lined(target, (0, 0, 0), 4), _lined(target, color, 2.5)]
    shapes += [_cross(box) for box, place in zip(boxes, places) if int(place) in outcome.summaries]
    return [shape for shape in shapes if shape["d"]]


def _swatch(kind: object) -> list[dict]:
    """The shapes of one swatch of the legend."""
    lined = _lined([SWATCH], ACCENT, 3)
    looks = {
        KEPT: [lined],
        MERGED: [_filled([SWATCH], *DIM), _filled([SWATCH], group_color(0), TINT), _lined([SWATCH], group_color(0), 3)],
        "several": [_filled([SWATCH], group_color(0), TINT), _lined([inner(SWATCH, 1, 2)], group_color(1), 1)],
        "unseen": [{"d": _box(SWATCH), "fill": STRIPES}], "summary": [_cross(SWATCH)],
    }  # fmt: skip
    return looks[kind] if kind in looks else [_filled([SWATCH], *SHADE[kind])]


def _filled(boxes: Iterable, color: Color, alpha: float) -> dict:
    return {"d": _path(boxes), "fill": _css(color), "fill-opacity": alpha}


def _lined(boxes: Iterable, color: Color, line: float) -> dict:
    return {"d": "".join(map(_box, boxes)), "stroke": _css(color), "stroke-width": line}


def _path(boxes: Iterable) -> str:
    """Boxes as an SVG path; adjacent boxes in a row are merged."""
    merged: list[list[float]] = []
    for left, top, right, bottom in boxes:
        if merged and merged[-1][1:4:2] == [top, bottom] and abs(merged[-1][2] - left) < 0.01:
            merged[-1][2] = right
        else:
            merged.append([left, top, right, bottom])
    return "".join(map(_box, merged))


def _box(box: Iterable) -> str:
    left, top, right, bottom = (f"{float(x):.2f}".rstrip("0").rstrip(".") for x in box)
    return f"M{left} {top}H{right}V{bottom}H{left}Z"


def _cross(box: Iterable) -> dict:
    left, top, right, bottom = (float(x) for x in box)
    path = f"M{left:g} {top:g}L{right:g} {bottom:g}M{right:g} {top:g}L{left:g} {bottom:g}"
    return {"d": path, "stroke": _css(ACCENT), "stroke-width": 2}


def _css(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
