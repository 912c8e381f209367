"""Rows of answers with their scores, and why a row has none."""

from collections.abc import Iterable, Mapping

LONGEST_FAILURE = 400


def scored(task, rows: Iterable[Mapping]) -> list[dict]:
    """Rows whose scores are those of the task's present code; an answer that cannot be scored becomes an error."""
    found = []
    for row in rows:
        if row["error"] is None:
            try:
                row = {**row, "score": task.score(row["reference"], row["text"])}
            except Exception as error:
                row = {**row, "score": None, "error": failure(error)}
        found.append(row)
    return found


def failure(error: Exception) -> str:
    """Why a row has no answer or no score, in one short line that can be written anywhere."""
    said = f"no column {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:LONGEST_FAILURE].encode(errors="backslashreplace").decode()
