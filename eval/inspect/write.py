"""The files of an inspection: selection.json and picture.png, and what is drawn from them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from vtc.errors import ConfigError
from vtc.eval.inspect.draw import draw, save
from vtc.eval.inspect.page import page
from vtc.eval.inspect.record import PICTURE, RECORD

FIGURE, PAGE = "inspect.png", "inspect.html"


def write(record: Mapping, picture: Image.Image, folder: Path) -> list[Path]:
    """Writes all four files and returns their paths; raises ConfigError where that is not possible."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    # Lists of numbers on one line each, so that a person can look at the rest.
    text = re.sub(r"\[\n\s+([-\d.,\s]+?)\n\s*\]", lambda m: "[" + re.sub(r",\s+", ", ", m[1]) + "]", text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")
        picture.save(folder / PICTURE)
    except OSError as error:
        raise ConfigError(f"--output {str(folder)!r} cannot be written: {error.strerror or error}") from None
    return [folder / RECORD, folder / PICTURE, *show(record, picture, folder)]


def show(record: Mapping, picture: Image.Image, folder: Path) -> list[Path]:
    """Writes the figure and the page alone and returns their paths; raises ConfigError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(draw(record, picture), folder / FIGURE)
        (folder / PAGE).write_text(page(record, picture), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {str(folder)!r} cannot be written: {error.strerror or error}") from None
    return [folder / FIGURE, folder / PAGE]
