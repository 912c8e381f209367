"""The report as one self-contained HTML page: style, script and pictures are inlined."""

from collections.abc import Sequence

from vtc.eval.report.tables import DEGREES
from vtc.eval.showing.chart import COLORS, MARKERS
from vtc.io.page import render

# The hues of COLORS, light enough for a dark page; black becomes white.
DARK = ("#56AEE8", "#FF8A4C", "#2CCB9B", "#E39AC6", "#F0B23E", "#8CCBF5", "#F2F2F2", "#D09B66", "#A8A8A8")
SHAPES = {  # matplotlib's markers of these letters, in a 14 x 14 square
    "o": "M2.4 7a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0-9.2 0z", "s": "M2.6 2.6h8.8v8.8H2.6z",
    "D": "M7 1.2 12.8 7 7 12.8 1.2 7z", "^": "M7 1.8 12.6 12H1.4z", "v": "M7 12.2 12.6 2H1.4z",
    "<": "M1.8 7 12 1.4v11.2z", ">": "M12.2 7 2 1.4v11.2z", "P": "M5 1.6h4V5h3.4v4H9v3.4H5V9H1.6V5H5z",
    "X": "M4.2 1.6 7 4.4l2.8-2.8 2.6 2.6L9.6 7l2.8 2.8-2.6 2.6L7 9.6l-2.8 2.8-2.6-2.6L4.4 7 1.6 4.2z",
    "*": "m7 1 1.5 4.1h4.3L9.4 7.8l1.2 4.3L7 9.6l-3.6 2.5 1.2-4.3L1.2 5.1h4.3z",
}  # fmt: skip


def text(blocks: Sequence, title: str) -> str:
    """The HTML of the page."""
    shapes = [SHAPES[marker] for marker in MARKERS]
    looks = {"light": COLORS, "dark": DARK, "shapes": shapes, "degrees": DEGREES}
    return render(__package__, "report.html.j2", blocks=blocks, title=title, **looks)
