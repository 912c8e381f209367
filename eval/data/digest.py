"""A digest of the contents of files, for run keys."""

import hashlib
from collections.abc import Callable
from pathlib import Path

FULL = 64 * 2**20  # bytes: larger files are represented by their two ends and their size


def digest(path: Path, include: Callable[[Path], bool] = lambda file: True) -> str:
    """16 hex digits of a sha256 over the name and contents of a file, or of all files in a folder that `include`
    accepts; hidden files are skipped."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and include(f))
    total = hashlib.sha256()
    for file in files:
        name = file.name if path.is_file() else file.relative_to(path).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        size = file.stat().st_size
        with file.open("rb") as stream:
            data = stream.read(FULL if size <= FULL else 2**20)
            if size > FULL:
                stream.seek(-(2**20), 2)
                data += stream.read()
        total.update(f"{name}:{size}:{hashlib.sha256(data).hexdigest()}\n".encode())
    return total.hexdigest()[:16]
