"""Files that vtc writes as a whole and reads again: put in place at once, and read as bytes that may be damaged."""

import contextlib
import io
import json
import math
import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from vtc.core.errors import ConfigError
from vtc.io.shapes import Shape

DEEPEST = 100  # levels of lists and mappings in a file


def refused(path: Path, error: OSError) -> ConfigError:
    """The error of a file that cannot be written, in one line."""
    return ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}; possible: another place, or room")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[io.BytesIO]:
    """Bytes to write to that take the place of the file `path` when the block ends, as a whole or not at all.

    Until then they are in memory. The file has the permissions that `open` gives, or those of the one that it replaces;
    the folder is made if there is none. Raises ConfigError in one line where that is not possible, as on a full disk.
    """
    data = io.BytesIO()
    yield data
    place = Path(os.path.realpath(path))
    # A name that no other process or thread has. It is there for an instant: waiting for the disk (fsync) would leave
    # it behind whenever a process is killed, and what a power cut takes can be made again.
    part = place.with_name(f".{os.getpid()}-{threading.get_ident()}-{uuid.uuid4().hex[:8]}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as file:
                file.write(data.getbuffer())
                with contextlib.suppress(OSError):  # there is none yet, or it is another user's
                    part.chmod(place.stat().st_mode & 0o777)
            os.replace(part, place)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise refused(Path(path), error) from None


def write_text(path: str | Path, text: str) -> None:
    r"""Puts a text in place, see `replacing`; half a character becomes its escape, `\ud800`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, data: object, indent: int = 2) -> None:
    """Puts data in place as JSON, see `replacing`; what is not a number is null."""
    write_text(path, json.dumps(finite(data), indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def finite(data: object) -> object:
    """The data with None for numbers that JSON does not have."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def read_json(path: Path, shape: Shape, possible: str) -> object:
    """The data of a JSON file that has a shape (`vtc.io.shapes`); raises ConfigError in one line that names the file
    and, where it is JSON, the place in it that is wrong. possible: how the line ends."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ConfigError(f"{str(path)!r} {why} ({getattr(error, 'strerror', None) or error}); {possible}") from None
    return parsed(data, repr(str(path)), shape, possible)


def parsed(data: bytes, where: str, shape: Shape, possible: str) -> object:
    """The data of a JSON text, likewise; where: what it is called."""
    try:
        content = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number)
        if data.count(b"[") + data.count(b"{") > DEEPEST:  # else it cannot be
            _shallow(content)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{where} is damaged, it cannot be read as JSON ({reason}); {possible}") from None
    return checked(content, where, shape, possible)


def checked(data: object, where: str, shape: Shape, possible: str) -> object:
    """Data of a shape; raises ConfigError in one line that names the place in it that is wrong."""
    try:
        return shape(data, "")
    except ConfigError as error:
        raise ConfigError(f"{where} is damaged: {error}; {possible}") from None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _shallow(data: object) -> None:
    """Raises RecursionError for data that other code could not walk through."""
    level = [data]
    for _ in range(DEEPEST):
        level = [item for part in level if isinstance(part, dict | list)
                 for item in (part.values() if isinstance(part, dict) else part)]  # fmt: skip
    if level:
        raise RecursionError
