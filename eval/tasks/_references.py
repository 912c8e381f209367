"""Ids and references of rows, whichever way data sets write them, and tasks with several accepted answers a row."""

from collections.abc import Mapping
from typing import ClassVar

from vtc.errors import ConfigError
from vtc.eval.data import ROW, Docs
from vtc.eval.tasks import Task
from vtc.eval.tasks._rows import known


def first_id(doc: Mapping, *columns: str) -> str:
    """The first of the columns that holds something, else the row's number in the source."""
    return next((str(doc[column]) for column in columns if known(doc.get(column)) is not None), None) or str(doc[ROW])


def references(value: object) -> list[str] | None:
    """The accepted answers from a column: a text, a number, a list of these or of `{"answer": text}`, or a dict of
    lists. None if there are none, or only blanks: the answers of the split are not public."""
    if isinstance(value, Mapping):
        value = value.get("answer")
    several = value if isinstance(value, list | tuple) else [value]
    found = [one.get("answer") if isinstance(one, Mapping) else one for one in several]
    texts = [str(one) for one in found if one is not None and one == one]  # NaN is not itself
    return texts if any(text.strip() for text in texts) else None


def public(reference: object, task: str) -> object:
    """The reference; raises ConfigError if there is none to score with."""
    if reference is None:
        raise ConfigError(f"task {task!r}: this row has no public answer to score with; possible: another --split")
    return reference


class ReferencesTask(Task):
    """A task whose rows have several accepted answers in `answers`.

    test_only_online: splits without public answers, on which only the benchmark's server computes figures.
    """

    test_only_online: ClassVar[tuple[str, ...]] = ()

    def open(self, split: str | None = None, limit: int | None = None, place: str | None = None) -> Docs:
        """As for all tasks; raises ConfigError, before anything is answered, if the answers are not public."""
        refused = f"split={split!r} of task {self.name!r} has no public answers, only the benchmark's server scores it"
        if place is None and split in self.test_only_online:
            raise ConfigError(f"{refused}; possible: {', '.join(self.splits)}")
        docs = super().open(split, limit, place)
        if len(docs) and references(docs.text(0).get("answers")) is None:
            raise ConfigError(
                f"the data of task {self.name!r} has no answers in its first row; possible: another split"
            )
        return docs

    def reference(self, doc: Mapping) -> list[str] | None:
        """The accepted answers; None where they are not public."""
        return references(doc["answers"])
