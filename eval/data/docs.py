"""Rows of a benchmark from the hub or from local files; pictures are decoded only when they are needed.

A place is a hub id (`owner/name`, `owner/name@revision`), a folder or a file. A folder holds what `save_to_disk`
wrote, or files named after the split (`test.jsonl`, `test-00000-of-00002.parquet`, also below `data/` or the config's
name), or one data file of any name, or is a copy of the hub's repository. Files are parquet, arrow, or JSON lines
(`.jsonl`, `.jsonl.gz`; a `.json` list too) whose pictures are paths relative to the file.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.digest import digest

# Keys added to each doc: its row number in the source; the folder of its relative paths; why it could not be read,
# or None.
ROW, FOLDER, FAULT = "_row", "_folder", "_fault"
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".arrow")


@dataclass(frozen=True)
class Source:
    """Where a benchmark is on the hub. ids: `owner/name`, tried in this order, the newest first."""

    ids: tuple[str, ...]
    config: str | None = None


class Docs(Sequence[dict]):
    """Rows in a fixed order. `docs[i]` has all columns; `docs.text(i)` leaves out pictures and is much cheaper.

    rows, texts: the same rows with and without pictures. record: identifies the data in run keys and results.
    """

    def __init__(self, rows: Sequence, texts: Sequence, record: dict, chosen: Sequence[int] | None = None,
                 folder: Path | None = None):  # fmt: skip
        self.rows, self.texts, self.record, self.folder = rows, texts, record, folder
        self.chosen = range(len(rows)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> dict:
        return self._doc(self.rows, i)

    def text(self, i: int) -> dict:
        """A doc without its pictures."""
        return self._doc(self.texts, i)

    @property
    def columns(self) -> list[str]:
        """The names of all columns that a row has."""
        if (names := getattr(self.rows, "column_names", None)) is not None:
            return list(names)
        return list(dict.fromkeys(str(name) for row in self.rows if isinstance(row, Mapping) for name in row))

    def _doc(self, rows: Sequence, i: int) -> dict:
        number, row, fault = self.chosen[i], {}, None
        try:
            row = rows[number]
        except Exception as error:  # a cell that `datasets` cannot decode
            fault = f"it cannot be read: {' '.join(str(error).split())[:160]}"
        if not isinstance(row, Mapping):
            row, fault = {}, f"its type is {type(row).__name__}; possible: an object with columns"
        return {**row, ROW: number, FOLDER: self.folder, FAULT: fault}

    def where(self, matches: Callable[[Mapping], bool]) -> "Docs":
        """The docs for which `matches` is true; it is given docs without pictures."""
        return self._of([self.chosen[i] for i in range(len(self)) if matches(self.text(i))])

    def limited(self, limit: int | None, group: Callable[[Mapping], str]) -> "Docs":
        """The docs of the first groups (in the order of their first docs) that together have at most `limit` docs.

        At least one group is always kept; None means no limit.
        """
        if limit is None or limit >= len(self):
            return self
        groups: dict[str, list[int]] = {}
        for i in range(len(self)):
            groups.setdefault(group(self.text(i)), []).append(i)
        taken: list[int] = []
        for members in groups.values():
            if taken and len(taken) + len(members) > limit:
                break
            taken += members
        return self._of([self.chosen[i] for i in sorted(taken)])

    def _of(self, chosen: Sequence[int]) -> "Docs":
        return Docs(self.rows, self.texts, self.record, chosen, self.folder)


def local(place: str) -> Path | None:
    """The file or folder that `place` names, or None if it does not exist."""
    try:
        path = Path(place).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name too long for a file, a user without a home
        return None


def open_source(
    task: str, source: Source | None, split: str, pictures: Sequence[str], place: str | None = None
) -> Docs:
    """The docs of a split, from `place` or from the first id of `source` that can be loaded.

    source: None for a task without data on the hub. pictures: the columns that hold pictures. Raises ConfigError in
    one line that lists what was tried if nothing can be loaded.
    """
    source = source or Source(())
    if place is None and not source.ids:
        raise ConfigError(f"task {task!r} has no data of its own; possible: --dataset-path")
    if place is not None and (path := local(place)) is not None:
        return _local(task, path, source, split, pictures)
    if place is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", place):
        raise ConfigError(f"--dataset-path {shown(place)} does not exist; possible: a folder, a data file, a hub id")
    return _hub(task, (place,) if place else source.ids, source.config, split, pictures)


def _hub(task: str, ids: Iterable[str], config: str | None, split: str, pictures: Sequence[str]) -> Docs:
    import datasets

    tried = []
    for full in ids:
        name, _, revision = full.partition("@")
        try:
            rows = datasets.load_dataset(name, config, split=split, revision=revision or None)
        except Exception as error:
            tried.append(f"{full} ({' '.join(str(error).split())[:160]})")
            continue
        record = {"id": name, "config": config, "split": split, "revision": _revision(rows) or revision or None}
        return _docs(rows, record, pictures)
    raise ConfigError(f"no data for task {task!r}: {'; '.join(tried)}; possible: --dataset-path with a local copy")


def _revision(rows) -> str | None:
    """The commit that a data set was loaded from, taken from the URLs of its files."""
    for address in rows.info.download_checksums or {}:
        if match := re.search(r"@([0-9a-f]{40})/", address):
            return match[1]
    return None


def _local(task: str, path: Path, source: Source, split: str, pictures: Sequence[str]) -> Docs:
    import datasets

    try:
        record = {"id": path.resolve().name, "config": source.config, "split": split, "revision": digest(path)}
        if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            rows = datasets.load_from_disk(str(path))
            return _docs(rows[split] if isinstance(rows, datasets.DatasetDict) else rows, record, pictures)
        files = [path] if path.is_file() else _files(path, source.config, split)
        if not files:
            rows = datasets.load_dataset(str(path), source.config, split=split)
            return _docs(rows, record, pictures)
        return _read(files, record, pictures)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"--dataset-path {str(path)!r} cannot be read for task {task!r}: {reason}") from None


def _files(folder: Path, config: str | None, split: str) -> list[Path]:
    """The data files of a split: those named after it, else the only file; empty if `datasets` must read the folder."""
    for place in [folder / config, folder / config / "data"] if config else []:
        if place.is_dir():
            folder = place
    for place in (folder, folder / "data"):
        candidates = sorted(f for f in place.iterdir() if f.name.endswith(SUFFIXES)) if place.is_dir() else []
        named = [f for f in candidates if re.match(rf"{re.escape(split)}(-\d+-of-\d+)?\.", f.name)]
        if named or len(candidates) == 1:
            return named or candidates
    return []


def _read(files: list[Path], record: dict, pictures: Sequence[str]) -> Docs:
    import datasets

    if all(file.suffix == ".parquet" for file in files):
        return _docs(datasets.Dataset.from_parquet([str(file) for file in files]), record, pictures)
    if all(file.suffix == ".arrow" for file in files):
        parts = [datasets.Dataset.from_file(str(file)) for file in files]
        return _docs(datasets.concatenate_datasets(parts), record, pictures)
    if len(files) > 1:
        raise ConfigError(f"several files could be meant: {', '.join(f.name for f in files)}; possible: name one")
    rows = read_json(files[0])
    return Docs(rows, rows, record, folder=files[0].parent)


def read_json(file: Path) -> list:
    """The rows of a file of JSON lines (also gzipped), or of a JSON list; raises ConfigError naming a bad line.

    A row may be any JSON value: it is up to the caller to refuse rows that are not objects.
    """
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{file.name!r} cannot be read: {error}") from None
    if file.suffix == ".json":
        rows = _parsed(text, f"{file.name!r}")
        if not isinstance(rows, list):
            raise ConfigError(f"{file.name!r} holds a {type(rows).__name__}; possible: a JSON list of rows")
        return rows
    lines = enumerate(text.split("\n"), 1)
    return [_parsed(line, f"line {number} of {file.name!r}") for number, line in lines if line.strip()]


def _parsed(text: str, where: str) -> object:
    """The value of a JSON text; raises ConfigError for invalid JSON, or numbers or nesting too large for Python."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is no JSON: {error}") from None


def _docs(rows, record: dict, pictures: Sequence[str]) -> Docs:
    """The docs of a `datasets.Dataset`, with pictures left as undecoded bytes."""
    import datasets

    raw = datasets.Image(decode=False)
    present = [column for column in pictures if column in rows.column_names]
    for column in present:
        feature = rows.features[column]
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, raw)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            rows = rows.cast_column(column, datasets.Sequence(raw))
    return Docs(rows, rows.remove_columns(present), record)
