"""The files of an inspection: selection.json and picture.png, and what is drawn from them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from vtc.eval.inspect.draw import draw
from vtc.eval.inspect.page import page
from vtc.eval.inspect.record import PICTURE, RECORD
from vtc.eval.inspect.sheet import save
from vtc.io.files import finite, replacing, write_text

FIGURE, PAGE = "inspect.png", "inspect.html"


def write(record: Mapping, picture: Image.Image, folder: Path) -> list[Path]:
    """Writes all four files and returns their paths; raises ConfigError if that fails."""
    text = json.dumps(finite(record), indent=1, ensure_ascii=False)
    # Each list of numbers on one line, so that the file stays readable.
    text = re.sub(r"\[\n\s+([-\d.,\s]+?)\n\s*\]", lambda m: "[" + re.sub(r",\s+", ", ", m[1]) + "]", text)
    write_text(folder / RECORD, text + "\n")
    with replacing(folder / PICTURE) as file:
        picture.save(file, "PNG")
    return [folder / RECORD, folder / PICTURE, *show(record, picture, folder)]


def show(record: Mapping, picture: Image.Image, folder: Path) -> list[Path]:
    """Writes only the figure and the page and returns their paths; raises ConfigError if that fails."""
    save(draw(record, picture), folder / FIGURE)
    write_text(folder / PAGE, page(record, picture))
    return [folder / FIGURE, folder / PAGE]
