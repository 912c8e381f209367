"""The sheet of a figure: sizes in inches, texts that fit, the header and the legend of every figure."""

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vtc.eval.inspect.paint import enlarge, swatch
from vtc.eval.inspect.record import Outcome
from vtc.eval.inspect.style import budget, clip_words, quoted, used, verdict
from vtc.io.files import replacing

DPI = 100
LABEL = 2.55  # inches: the width of a row's text
NARROWEST = 7.0  # inches: the least width of the figure
HEAD, FOOT, LINE = 1.42, 0.44, 0.24  # inches: above and below everything; LINE: of the legend
GREEN, RED, GREY = "#157347", "#b3261e", "#5f6368"


class Picture(Figure):
    """A Figure that a notebook displays whether or not pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()


class Sheet:
    """A figure sized in inches, whose parts are placed in inches from its top left corner."""

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Picture(figsize=(width, height), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)

    def image(self, pixels: object, left: float, top: float, width: float, height: float) -> None:
        """Draws an array of pixels into a box."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set_axis_off()
        axes.imshow(pixels, aspect="auto", interpolation="antialiased")

    def text(self, left: float, top: float, words: str, size: float, color: str = "black", **style) -> float:
        """Draws text verbatim (no math markup); returns the x of its right edge."""
        place = left / self.width, 1 - top / self.height
        made = self.figure.text(*place, words, va="top", parse_math=False, fontsize=size, color=color, **style)
        return made.get_window_extent(self.canvas.get_renderer()).x1 / DPI

    def fitted(self, left: float, top: float, words: str, size: float, room: tuple[float, int], **style) -> int:
        """Draws text within room = (inches, lines), shortened with an ellipsis; returns the number of lines."""
        width, lines = room
        chars = max(8, int(width * 130 / size))
        while True:
            fit = _fit(words, chars, lines)
            made = self.figure.text(0, 0, fit, parse_math=False, fontsize=size, weight=style.get("weight"))
            wide = made.get_window_extent(self.canvas.get_renderer()).width / DPI
            made.remove()
            if wide <= width or chars <= 8:
                self.text(left, top, fit, size, **style)
                return 1 + fit.count("\n")
            chars = max(8, min(chars - 1, int(chars * width / wide)))

    def square(self, left: float, top: float, side: float, face: tuple, edge: tuple) -> None:
        """Draws a small filled square."""
        corner = left / self.width, 1 - (top + side) / self.height
        size = side / self.width, side / self.height
        where = self.figure.transFigure
        self.figure.add_artist(Rectangle(corner, *size, transform=where, facecolor=face, edgecolor=edge, linewidth=1.5))


def framed(
    record: Mapping, picture: Image.Image, outcome_rows: list[list[Outcome]], width: float, tall: float
) -> Sheet:
    """A sheet with its header and legend, at least as wide as asked and with `tall` inches between the two, from HEAD
    on."""
    width = max(width, NARROWEST)
    lines = _legend_lines(used(record, outcome_rows), width)
    sheet = Sheet(width, HEAD + tall + FOOT + LINE * (len(lines) - 1))
    _header(sheet, record, picture)
    _legend(sheet, lines)
    return sheet


def _header(sheet: Sheet, record: Mapping, picture: Image.Image) -> None:
    """Draws the picture, the question and the full model's answer at the top."""
    scale = min((HEAD - 0.3) / picture.height, (LABEL - 0.35) / picture.width)
    wide, high = picture.width * scale, picture.height * scale
    sheet.image(enlarge(picture, 300), 0.15, 0.15, wide, high)
    left, top = 0.15 + wide + 0.2, 0.13
    room = sheet.width - left - 0.15
    model, right, source = record["model"], record["reference"], record["picture"]["source"]
    about = [f"{model['name'] or model['family']} ({model['family']})", *clip_words(record)]
    about += [f"{record['tokens']} visual tokens", *([source] if source else [])]
    lines = [(record["question"], 13, 2, {"weight": "bold"})]
    lines += [(f"full model: {quoted(record['full']['answer'])}", 11, 1, {})]
    lines += [] if right is None else [(f"right answer: {quoted(right)}", 9, 1, {"color": GREY})]
    lines += [(", ".join(about), 8.5, 1, {"color": GREY})]
    for words, size, most, style in lines:
        top += sheet.fitted(left, top, words, size, (room, most), **style) * size * 0.0175 + 0.06


def label(sheet: Sheet, record: Mapping, run: Mapping, left: float, top: float, room: float) -> None:
    """Draws a run's budget and answer."""
    same, verdict_text = verdict(record, run)
    requested, achieved = budget(run, record["tokens"])
    color = GREEN if same else RED
    top += 0.18 * sheet.fitted(left, top, requested, 8.5, (room, 1), color=GREY)
    top += 0.155 * sheet.fitted(left, top, achieved, 8.5, (room, 2), color=GREY) + 0.07
    top += 0.2 * sheet.fitted(left, top, quoted(run["answer"]), 12, (room, 2), color=color, weight="bold") + 0.05
    sheet.text(left, top, verdict_text, 8.5, color)


def name_row(sheet: Sheet, record: Mapping, run: Mapping, top: float) -> None:
    """Draws a run's strategy, budget and answer to the left of its row."""
    lines = sheet.fitted(0.15, top, run["strategy"], 12, (LABEL - 0.3, 2), weight="bold")
    label(sheet, record, run, 0.15, top + 0.06 + 0.2 * lines, LABEL - 0.3)


def _legend_lines(entries: list, width: float) -> list[list]:
    """The legend's entries, broken into lines about as wide as the figure."""
    lines, used_up = [[]], 0.15
    for entry in entries:
        wide = 0.5 + 0.072 * len(entry[0])
        if lines[-1] and used_up + wide > width:
            lines.append([])
            used_up = 0.15
        lines[-1].append(entry)
        used_up += wide
    return lines


def _legend(sheet: Sheet, lines: list[list]) -> None:
    """Draws the legend at the bottom."""
    for i, line in enumerate(lines):
        left, top = 0.15, sheet.height - 0.3 - LINE * (len(lines) - 1 - i)
        for words, kind in line:
            face, edge = swatch(kind)
            sheet.square(left, top, 0.15, face, edge)
            if kind == "summary":
                sheet.text(left + 0.075, top - 0.005, "×", 10, edge, ha="center")
            left = sheet.text(left + 0.22, top + 0.005, words, 8.5) + 0.25


def _fit(text: str, width: int, lines: int) -> str:
    """The text in at most `lines` lines of `width` characters, shortened with an ellipsis."""
    wrapped = textwrap.wrap(text, max(8, width), max_lines=lines, placeholder=" …", break_on_hyphens=False)
    return "\n".join(wrapped)


def save(figure: Figure, path: Path) -> None:
    """Writes a small PNG whose bytes depend only on the figure."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    with replacing(path) as file:
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
