"""The figure of a clip: for each method and stage a strip of frames, with the tokens that stay counted below each."""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from vtc.eval.inspect.paint import enlarge, paint
from vtc.eval.inspect.record import Outcome, across, frames_of, keys, outcomes
from vtc.eval.inspect.sheet import DPI, GREY, HEAD, LABEL, Sheet, framed, name_row
from vtc.eval.inspect.style import UNTOUCHED, caption, column_title, frame_words

MOST, LONGER = 8, 1.3  # frames side by side; inches: the longer side of one
COUNT, TITLE, WORDS, LEAST, GAP = 0.2, 0.24, 0.4, 1.75, 0.08  # inches; LEAST: height of a run


@dataclass(frozen=True)
class Strip:
    """The sizes of every strip, in inches. across: frames side by side; rows: lines of them."""

    across: int
    rows: int
    wide: float
    high: float

    @property
    def tall(self) -> float:
        """A strip with its title and captions."""
        return TITLE + self.rows * (self.high + COUNT) + WORDS

    @property
    def width(self) -> float:
        """A line of frames."""
        return self.across * (self.wide + GAP) - GAP


def draw_clip(record: Mapping, picture: Image.Image) -> Figure:
    """The figure of the record of a clip (see `vtc.eval.inspect.record`) and the sheet of its frames."""
    outcome_rows, frames = [outcomes(run, record["tokens"]) for run in record["runs"]], frames_of(record, picture)
    wide, high = (LONGER * x / max(frames[0].size) for x in frames[0].size)
    side_by_side = min(MOST, len(frames))
    strip = Strip(side_by_side, -(-len(frames) // side_by_side), wide, high)
    heights = [max(LEAST, len(row) * strip.tall) + GAP for row in outcome_rows]
    sheet = framed(record, frames[0], outcome_rows, LABEL + strip.width + 0.15, sum(heights))
    large, top = [enlarge(frame, 2 * round(LONGER * DPI)) for frame in frames], HEAD
    for run, row, height in zip(record["runs"], outcome_rows, heights):
        name_row(sheet, record, run, top)
        if not row:
            sheet.text(LABEL, top + TITLE, UNTOUCHED, 9, GREY)
        for i, (key, outcome) in enumerate(zip(keys(run), row)):
            _strip(sheet, record, large, outcome, column_title(key), strip, top + i * strip.tall)
        top += height
    return sheet.figure


def _strip(
    sheet: Sheet, record: Mapping, frames: list[Image.Image], outcome: Outcome, title: str, strip: Strip, top: float
) -> None:
    sheet.text(LABEL, top, title, 9, weight="bold")
    top += TITLE
    for v, (view, frame) in enumerate(zip(record["views"], frames)):
        x = LABEL + v % strip.across * (strip.wide + GAP)
        y = top + v // strip.across * (strip.high + COUNT)
        sheet.image(paint(frame, record, view, outcome), x, y, strip.wide, strip.high)
        sheet.fitted(x, y + strip.high + 0.02, frame_words(view, outcome), 7, (strip.wide + GAP / 2, 1), color=GREY)
    top += strip.rows * (strip.high + COUNT)
    words = caption(outcome, record["views"])
    if flows := across(record, outcome):
        words += ". Between frames: " + ", ".join(f"{a} → {b} {count}" for a, b, count in flows)
    sheet.fitted(LABEL, top + 0.02, words, 7.5, (sheet.width - LABEL - 0.15, 2), color=GREY)
