"""The sample log: one JSON line per sample, flushed as it is written, behind a header that says which run it is."""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from vtc.errors import ConfigError

SCHEMA = "vtc.eval.samples/2"


def run_key(identity: dict) -> str:
    """sha256 of the canonical JSON of everything that a run's figures depend on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class SampleLog:
    """The rows of one run in a file, each row a dict with `id` and `error` (None, or why there is no answer).

    Opening an existing file continues it: rows already there are in `rows`, a last line that was cut off is dropped.
    Raises ConfigError if the file belongs to another run (and `overwrite` is not given), if another process writes
    it, or if it is damaged before its last line.
    """

    def __init__(self, path: Path, identity: dict, overwrite: bool = False):
        self.path, self.identity, self.key = path, identity, run_key(identity)
        self.rows: dict[str, dict] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open(overwrite)
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"{str(path)!r} is in use by another process; possible: another --output") from None
        except BaseException:
            self._file.close()
            raise

    def _open(self, overwrite: bool) -> None:
        lines = [] if overwrite else list(self._whole_lines())
        if not lines:
            self._file.truncate(0)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._write([{"schema": SCHEMA, "key": self.key, "created": now, "identity": self.identity}])
            return
        self._check_header(lines[0])
        for row in lines[1:]:
            self._keep(row)

    def _whole_lines(self) -> Iterator[dict]:
        """Parsed lines; the file is cut after the last one that was written to its end."""
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._file.truncate(len(whole.encode()))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                raise ConfigError(f"line {number} of {str(self.path)!r} is damaged; possible: --overwrite") from None

    def _check_header(self, header: dict) -> None:
        if header.get("schema") != SCHEMA:
            raise ConfigError(f"{str(self.path)!r} is no sample log; possible: another --output, --overwrite")
        if header["key"] != self.key:
            what = "; ".join(_differences(header["identity"], self.identity)) or "its key"
            raise ConfigError(
                f"{str(self.path)!r} holds another run, it differs in {what}; possible: another --output, --overwrite"
            )

    def _keep(self, row: dict) -> None:
        self.rows[row["id"]] = row

    def _write(self, rows: Iterable[dict]) -> None:
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._file.flush()

    def done(self, ident: str) -> bool:
        """Whether a sample was answered; one that failed is not done and will be tried again."""
        return ident in self.rows and self.rows[ident]["error"] is None

    def append(self, rows: Iterable[dict]) -> None:
        """Writes rows, each flushed before the next; a later row for the same sample replaces the earlier."""
        for row in rows:
            self._write([row])
            self._keep(row)

    def close(self) -> None:
        """Releases the file."""
        self._file.close()


def _differences(there: dict, now: dict, prefix: str = "") -> list[str]:
    """The first few entries that differ, as `where=old (now new)`."""
    found = []
    for key in sorted({*there, *now}):
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}={a!r} (now {b!r})")
    return found[:3]
