"""The score of each answer: computed once, stored with it, and computed again only if it is no longer valid."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from vtc.eval.results.samples import read_log

LONGEST_FAILURE = 400
SCORED_BY = ("name", "version", "dialect")  # attributes of a task on which its scores depend


def failure(error: Exception) -> str:
    """The reason for a missing answer or score, in one short line of encodable text."""
    message = f"no column {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:LONGEST_FAILURE].encode(errors="backslashreplace").decode()


def scored(task, rows: Iterable[Mapping], anew: bool = False) -> list[dict]:
    """Rows with scores. A stored score is kept, unless `anew` is set or the task cannot use it; an answer that cannot be
    scored becomes an error."""
    scored_rows = []
    for row in rows:
        if row["error"] is None and (anew or not _counts(task, row)):
            try:
                row = {**row, "score": task.score(row["reference"], row["text"])}
            except Exception as error:
                row = {**row, "score": None, "error": failure(error)}
        scored_rows.append(row)
    return scored_rows


def _counts(task, row: Mapping) -> bool:
    """Whether a row has a score from which the task's figures can be computed."""
    if row.get("score") is None:
        return False
    try:
        return all(map(math.isfinite, task.tally([row]).values()))
    except Exception:  # damaged, or written by other code
        return False


def holds(task, header: Mapping | None) -> bool:
    """Whether the scores in a log with this header are those of the current version of the task."""
    about = {} if header is None else header["identity"].get("task")
    return isinstance(about, Mapping) and all(about.get(key) == getattr(task, key) for key in SCORED_BY)


def read_scored(path: Path, task) -> tuple[dict | None, dict[str, dict]]:
    """Like `read_log`, with scores of the current version of the task."""
    header, rows = read_log(path)
    return header, {row["id"]: row for row in scored(task, rows.values(), anew=not holds(task, header))}
