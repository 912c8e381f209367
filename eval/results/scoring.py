"""The score of each answer: made once, when it is answered, stored with it, and made anew only where it cannot hold."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from vtc.eval.results.samples import read_log

LONGEST_FAILURE = 400
SCORED_BY = ("name", "version", "dialect")  # what of a task its scores depend on


def failure(error: Exception) -> str:
    """Why a row has no answer or no score, in one short line that can be written anywhere."""
    message = f"no column {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {message}"[:LONGEST_FAILURE].encode(errors="backslashreplace").decode()


def scored(task, rows: Iterable[Mapping], anew: bool = False) -> list[dict]:
    """Rows with scores: a row keeps the one that is stored with it unless `anew`, or unless the task cannot add it up;
    an answer that cannot be scored becomes an error."""
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
    """Whether a row has a score that the task's figures can be made of."""
    if row.get("score") is None:
        return False
    try:
        return all(map(math.isfinite, task.tally([row]).values()))
    except Exception:  # damaged, or of other code
        return False


def holds(task, header: Mapping | None) -> bool:
    """Whether scores in a log with this header are those of the task as it is now."""
    about = {} if header is None else header["identity"].get("task")
    return isinstance(about, Mapping) and all(about.get(key) == getattr(task, key) for key in SCORED_BY)


def read_scored(path: Path, task) -> tuple[dict | None, dict[str, dict]]:
    """As `read_log`, with scores of the task as it is now."""
    header, rows = read_log(path)
    return header, {row["id"]: row for row in scored(task, rows.values(), anew=not holds(task, header))}
