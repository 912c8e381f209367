"""The sample log: a header that identifies the run, then one JSON line per sample, flushed as it is written.

If several processes share a run, each writes a file of its own: the first `samples/NAME.jsonl`, the second
`samples/NAME.rank1.jsonl`, ...; at the end the first one merges the others' files into its own. Times, which differ
from run to run, are kept separately in `times/NAME.jsonl`, so that equal runs give equal lines.
"""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from vtc.core.errors import ConfigError
from vtc.eval.results import saved
from vtc.eval.results.differences import differences
from vtc.io.files import finite, parsed, refused, write_text
from vtc.io.shapes import Shape, record

SCHEMA = saved.LOG_SCHEMA
ANEW = "possible: another --output, --overwrite"
MOST_DIFFERENCES = 3  # in a message


def run_key(identity: dict) -> str:
    """The sha256 of the canonical JSON of everything that a run's figures depend on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse(path: Path, data: bytes, shape: Shape = saved.row) -> Iterator[dict]:
    """The objects of all complete lines; raises ConfigError for a damaged line.

    shape: that of all lines except a first one with a schema.
    """
    for number, line in enumerate(data.split(b"\n")[:-1], 1):  # not splitlines: texts may contain U+2028 and similar
        where = f"line {number} of {str(path)!r}"
        value = parsed(line, where, shape if number > 1 else record({}), "possible: --overwrite")
        if number == 1:
            if value.get("schema", SCHEMA) != SCHEMA:
                raise ConfigError(f"{str(path)!r} is no sample log of this version; {ANEW}")
            value = parsed(line, where, saved.HEADER if "schema" in value else shape, "possible: --overwrite")
        yield value


def read_log(path: Path, shape: Shape = saved.row) -> tuple[dict | None, dict[str, dict]]:
    """The header of a log (None if there is none) and its rows by `id`, the last one of each sample.

    shape: that of a row. A missing file has no rows; an incomplete last line is ignored. Raises ConfigError for any
    other damage, and for a file that cannot be read.
    """
    try:
        data = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror or error}") from None
    lines = list(parse(path, data, shape))
    header = lines.pop(0) if lines and "schema" in lines[0] else None
    return header, {row["id"]: row for row in lines}


def read_times(path: Path) -> dict[str, dict]:
    """By sample `seconds` and `batch`, where known."""
    return read_log(path, saved.TIMES)[1]


def line(row: dict) -> str:
    """A row as a line of JSON."""
    return json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n"


class Lines:
    """A file of JSON lines that one process appends to; reading it removes an incomplete last line."""

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - unbuffered: no partial lines
        except OSError as error:
            raise refused(path, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            if not isinstance(error, BlockingIOError):
                raise refused(path, error) from None
            raise ConfigError(f"{str(path)!r} is in use by another process; possible: another --output") from None

    def read(self, shape: Shape = saved.row) -> list[dict]:
        """All complete lines."""
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self._file.truncate(len(whole))
        return list(parse(self.path, whole, shape))

    def clear(self) -> None:
        """Empties the file."""
        self._file.truncate(0)

    def write(self, row: dict) -> dict:
        """Appends a line and hands it to the operating system, either completely or, with ConfigError, not at all; returns
        the row as it will be read."""
        text = line(row)
        data, end = text.encode("utf-8", "backslashreplace"), self._file.seek(0, 2)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise refused(self.path, error) from None
        return json.loads(text)

    def close(self) -> None:
        """Releases the file."""
        self._file.close()


def rewrite(path: Path, header: dict, rows: Iterable[dict]) -> None:
    """Replaces the header and rows of a log; raises ConfigError if a process is writing to it."""
    lock = Lines(path)
    try:
        write_text(path, "".join(map(line, (header, *rows))))
    finally:
        lock.close()


class SampleLog:
    """The rows of one run on one task: each a dict with `id` and `error` (None, or why there is no answer).

    output, name: of the files. rank, world: the number of this process, and of how many. Opening a log continues it:
    `rows` has the rows of all processes, also of earlier starts. Raises ConfigError if a file belongs to another run (unless
    `overwrite` is given), if another process is writing to it, or if it is damaged before its last line.
    """

    def __init__(self, output: Path, name: str, identity: dict, overwrite: bool = False, rank: int = 0, world: int = 1):
        self.output, self.name, self.identity, self.key = output, name, identity, run_key(identity)
        self.rank, self.world = rank, world
        self.rows: dict[str, dict] = {}
        self.path = self._path("samples", rank)
        self._samples = Lines(self.path)
        try:
            self._times = Lines(self._path("times", rank))
        except BaseException:
            self._samples.close()
            raise
        try:
            self._open(overwrite)
        except BaseException:
            self.close()
            raise

    def _path(self, kind: str, rank: int) -> Path:
        return self.output / kind / f"{self.name}{f'.rank{rank}' if rank else ''}.jsonl"

    def _open(self, overwrite: bool) -> None:
        lines = [] if overwrite else self._samples.read()
        if not lines:
            self._samples.clear()
            self._samples.write({"schema": SCHEMA, "key": self.key, "identity": self.identity})
        else:
            self._check(self.path, lines[0])
        if overwrite:
            self._times.clear()
            for path in self._other_files(beyond=True):
                path.unlink()
        else:
            self._times.read(saved.TIMES)
            for path in self._other_files():
                self._take(path)
        for row in lines[1:]:
            self._keep(row)

    def _other_files(self, beyond: bool = False) -> list[Path]:
        """The sample files of other processes; beyond: only of those that do not take part now, with their times."""
        own_path, ranks = self.path, {self._path("samples", rank) for rank in range(self.world)}
        paths = [*self.path.parent.glob(f"{_literal(self.name)}.rank*.jsonl"), self._path("samples", 0)]
        paths = sorted({path for path in paths if path != own_path and path.is_file() and _is_rank(path, self.name)})
        if not beyond:
            return paths
        gone = [path for path in paths if path not in ranks] if self.rank == 0 else []
        return [*gone, *(times for path in gone if (times := self.output / "times" / path.name).is_file())]

    def _take(self, path: Path) -> dict[str, dict]:
        """Reads another process's file into `rows`, without replacing answers by errors; returns its rows."""
        header, rows = read_log(path)
        if header is not None:
            self._check(path, header)
        for row in rows.values():
            self._keep(row)
        return rows

    def _check(self, path: Path, header: dict) -> None:
        if "schema" not in header:
            raise ConfigError(f"{str(path)!r} is no sample log of this version; {ANEW}")
        if header["key"] != self.key:
            changes = islice(differences(header["identity"], self.identity), MOST_DIFFERENCES)
            text = "; ".join(f"{place}={old!r} (now {now!r})" for place, old, now in changes) or "its key"
            raise ConfigError(f"{str(path)!r} holds another run, it differs in {text}; {ANEW}")

    def _keep(self, row: dict) -> None:
        if row["error"] is None or not self.done(row["id"]):
            self.rows[row["id"]] = row

    def done(self, ident: str) -> bool:
        """Whether a sample was answered; one that failed will be tried again."""
        return ident in self.rows and self.rows[ident]["error"] is None

    def append(self, row: dict, times: dict | None = None) -> None:
        """Writes a row, after its times; a later row replaces an earlier one of the same sample."""
        if times is not None:
            self._times.write({"id": row["id"], **times})
        self._keep(self._samples.write(row))

    def gather(self) -> None:
        """Merges the files of the other processes, which must have closed them, and deletes them."""
        for path in self._other_files():
            times_path = self.output / "times" / path.name
            times = read_times(times_path)
            own_rows = read_log(self.path)[1]
            for ident, row in self._take(path).items():
                if ident not in own_rows or (own_rows[ident]["error"] is not None and row["error"] is None):
                    self.append(row, times.get(ident))
            path.unlink()
            times_path.unlink(missing_ok=True)

    def times(self) -> dict[str, dict]:
        """By sample `seconds` and `batch`, where known."""
        return read_times(self._path("times", 0))

    def close(self) -> None:
        """Releases the files."""
        try:
            self._samples.close()
        finally:
            self._times.close()


def _literal(name: str) -> str:
    """A name escaped as a glob pattern."""
    return name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


def _is_rank(path: Path, name: str) -> bool:
    rest = path.name[len(name) :].removesuffix(".jsonl")
    return rest == "" or rest.removeprefix(".rank").isdecimal()
