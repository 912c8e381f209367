"""The figure: a row for each method and a column for each stage; with a single stage, methods are side by side."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from PIL import Image

from vtc.eval.inspect.paint import enlarge, paint
from vtc.eval.inspect.record import Outcome, columns, keys, outcomes
from vtc.eval.inspect.sheet import DPI, GREY, HEAD, LABEL, Sheet, framed, label, name_row
from vtc.eval.inspect.strip import draw_clip
from vtc.eval.inspect.style import UNTOUCHED, caption, column_title

LONGER = 2.5  # inches: the longer side of a picture
FLATTEST = 1.25  # inches: the least length of its shorter side
ACROSS = 4  # the most methods side by side
TITLE, WORDS, TEXT, GAP, BETWEEN = 0.34, 0.32, 1.32, 0.14, 0.05  # inches


def draw(record: Mapping, picture: Image.Image) -> Figure:
    """The figure of a record (see `vtc.eval.inspect.record`) and its picture."""
    if "frames" in record["picture"]:
        return draw_clip(record, picture)
    outcome_rows = [outcomes(run, record["tokens"]) for run in record["runs"]]
    stages, views = columns(record) or [(None, 0)], len(record["views"])
    wide, high = (LONGER * x / max(picture.size) for x in picture.size)
    grow = max(1.0, FLATTEST / min(wide, high))  # so that very flat pictures stay legible
    wide, high = wide * grow, high * grow
    cell, alone = views * wide + (views - 1) * BETWEEN, len(stages) == 1
    title = TITLE + (0.17 if views > 1 else 0)
    if alone:
        cell, across = max(cell, LABEL - 0.2), min(ACROSS, len(outcome_rows))
        left, row = 0.15, title + high + WORDS + TEXT
        width, tall = left + across * (cell + GAP), -(-len(outcome_rows) // across) * row
    else:
        left, row = LABEL, max(high, TEXT + 0.25) + WORDS + GAP
        width, tall = left + len(stages) * (cell + GAP), title + len(outcome_rows) * row
    sheet = framed(record, picture, outcome_rows, width, tall)
    large = enlarge(picture, 2 * round(max(wide, high) * DPI))
    for r, (run, row_of) in enumerate(zip(record["runs"], outcome_rows)):
        done = dict(zip(keys(run), row_of))
        if alone:
            x, y = left + r % across * (cell + GAP), HEAD + r // across * row
            sheet.fitted(x, y + 0.04, run["strategy"], 12, (cell, 1), weight="bold")
            _names(sheet, record, x, y + title - 0.19, wide)
            where = f"{column_title(stages[0])}: "
            _cell(sheet, record, large, done.get(stages[0]), (x, y + title, wide, high), where)
            label(sheet, record, run, x, y + title + high + WORDS + 0.03, cell)
            continue
        y = HEAD + title + r * row
        name_row(sheet, record, run, y)
        for i, key in enumerate(stages):
            _cell(sheet, record, large, done.get(key), (left + i * (cell + GAP), y, wide, high))
    for i, key in enumerate([] if alone else stages):
        x = left + i * (cell + GAP)
        sheet.text(x + cell / 2, HEAD + 0.06, column_title(key), 10, ha="center", weight="bold")
        _names(sheet, record, x, HEAD + title - 0.19, wide)
    return sheet.figure


def _names(sheet: Sheet, record: Mapping, left: float, top: float, wide: float) -> None:
    """Labels the views of a cell if there are several."""
    for v, view in enumerate(record["views"] if len(record["views"]) > 1 else ()):
        sheet.text(left + v * (wide + BETWEEN), top, view["name"], 8, GREY)


def _cell(
    sheet: Sheet, record: Mapping, picture: Image.Image, outcome: Outcome | None, place: tuple, where: str = ""
) -> None:
    left, top, wide, high = place
    width = len(record["views"]) * (wide + BETWEEN) - BETWEEN
    if outcome is None:
        sheet.text(left + width / 2, top + high / 2 - 0.1, UNTOUCHED, 9, GREY, ha="center")
        return
    for v, view in enumerate(record["views"]):
        sheet.image(paint(picture, record, view, outcome), left + v * (wide + BETWEEN), top, wide, high)
    words = where + caption(outcome, record["views"])
    sheet.fitted(left, top + high + 0.04, words, 7.5, (max(width, 1.4), 2), color=GREY)
