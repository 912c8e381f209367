"""Figures as PNG files: texts in them are data, and the file is put in place as a whole."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from vtc.io.files import replacing


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """matplotlib without mathematics between dollar signs, and without warnings about characters that its font
    lacks."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ ")
        yield


def save(figure: object, path: Path, **options) -> None:
    """Writes a figure as PNG; its texts were made, and are drawn, within `plain_text`."""
    with replacing(path) as file:
        figure.savefig(file, format="png", **options)
