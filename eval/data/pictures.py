"""Converts whatever a data column holds into a picture in 8-bit RGB, as models expect it."""

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vtc.core.errors import ConfigError, shown

POSSIBLE = "possible: PIL, bytes, a path, base64, a data URI"
FORM = {"bytes", "path"}  # keys of the mapping that `datasets` uses for an undecoded picture
LONGEST_PATH = 4096
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # modes that Pillow clips to 8 bits instead of scaling
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{16,}={0,2}\s*")


def nothing(value: object) -> bool:
    """Whether a value holds no picture at all: None, a blank text, an empty list, `{"bytes": None, "path": None}`."""
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= FORM and all(one is None for one in value.values())
    if isinstance(value, str | bytes):
        return not value.strip()
    return value is None or (isinstance(value, list | tuple) and not value)


def picture(value: object, folder: Path | None = None) -> Image.Image:
    """A picture in RGB from what a column holds: PIL, bytes, a path, base64, a data URI, or the
    `{"bytes": ..., "path": ...}` of datasets.

    folder: the base of relative paths. Raises ConfigError if it cannot be read, in a short line that leaves out the
    data.
    """
    if isinstance(value, Mapping) and set(value) & FORM:
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, Image.Image):
        return rgb(value)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return _opened(_decoded(data) or data, f"{len(data):,} bytes")
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise ConfigError(f"a picture cannot be a {type(value).__name__}; {POSSIBLE}")
    if (data := _decoded(value)) is not None:
        return _opened(data, f"a text of {len(value):,} characters in base64")
    if len(value) > LONGEST_PATH:
        raise ConfigError(f"a text of {len(value):,} characters is no picture; {POSSIBLE}")
    return _opened((folder or Path()) / value, f"file {shown(value)}")


def _decoded(value: str | bytes) -> bytes | None:
    """The bytes of a data URI, or of base64 that decodes to a picture; None for anything else."""
    try:
        text = value if isinstance(value, str) else value.decode("ascii")
        uri = DATA_URI.match(text)
        if uri is None and BASE64.fullmatch(text) is None:
            return None
        plain = re.sub(r"\s", "", text[uri.end() :] if uri else text).rstrip("=").translate(str.maketrans("-_", "+/"))
        data = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        if uri is None:
            Image.open(io.BytesIO(data)).close()
    except Exception:
        return None
    return data


def _opened(source: bytes | Path, label: str) -> Image.Image:
    """The decoded picture; raises ConfigError however the decoder fails."""
    try:
        if isinstance(source, Path) and not source.is_file():
            raise ConfigError(f"{label} of a picture does not exist; {POSSIBLE}")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            return rgb(image)
    except (ConfigError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise ConfigError(f"{label}: no picture that Pillow can read") from None
    except Exception as error:  # decoders raise many kinds, such as SyntaxError and struct.error
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:80] or type(error).__name__
        raise ConfigError(f"{label}: the picture cannot be read, {why}") from None


def rgb(image: Image.Image) -> Image.Image:
    """The picture in 8-bit RGB; values with more than 8 bits are scaled down.

    16-bit values are divided by 257. 32-bit integers are read as 8-bit values if all are within [0, 255] and as 16-bit
    values if within [0, 65535]; otherwise their range is stretched to [0, 255]. Floats are treated the same way, except
    that values within [0, 1] are multiplied by 255. Transparency is dropped, as in the harnesses that papers use.
    Raises ConfigError for a mode that cannot be converted, and for values that are not finite.
    """
    if image.mode == "RGB":
        return image
    if image.mode in DEEP:
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    try:
        return image.convert(PREMULTIPLIED.get(image.mode, image.mode)).convert("RGB")
    except ValueError as error:
        raise ConfigError(f"a picture of mode {image.mode!r} cannot be made RGB: {error}") from None


def _eight_bits(image: Image.Image) -> np.ndarray:
    """The values of a picture of one of the modes `DEEP` on the scale from 0 to 255."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ConfigError(f"a picture of mode {image.mode!r} holds values that are no numbers")
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # the latter: older Pillow
        low, high = 0, 65535
    elif low >= 0 and high <= 65535:
        low, high = 0, next(top for top in (1, 255, 65535) if high <= top and (top > 1 or image.mode == "F"))
    return np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
