"""Tasks with several accepted answers per row, and the formats in which data sets store them."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from vtc.core.errors import ConfigError
from vtc.eval.data.docs import Docs
from vtc.eval.tasks import Task
from vtc.eval.tasks._rows import list_or_mapping, plain


def references(value: object) -> list[str] | None:
    """The accepted answers in a column: a text, a number, a list of these or of `{"answer": text}`, a dict of lists, or
    such a list written as text. None if there are none, or only blanks: the answers of the split are not public.

    Raises ConfigError for anything else.
    """
    if isinstance(value, str) and value.strip().startswith(("[", "{")):
        value = _written(value)
    if isinstance(value, Mapping):
        value = value.get("answer")
    several = value if isinstance(value, list | tuple) else [value]
    answers = [one.get("answer") if isinstance(one, Mapping) else one for one in several]
    known_ones = [one for one in answers if one is not None and one == one]  # NaN is not itself
    texts = [one if isinstance(one, str) else plain(one, "an accepted answer") for one in known_ones]
    return texts if any(text.strip() for text in texts) else None


def _written(text: str) -> object:
    """The list or mapping that a text represents, or the text itself if it only begins like one."""
    try:
        return list_or_mapping(text, "answers")
    except ConfigError:
        return text


def public(reference: object, task: str) -> object:
    """The reference; raises ConfigError if it is None."""
    if reference is None:
        raise ConfigError(f"task {task!r}: this row has no public answer to score with; possible: another --split")
    return reference


class ReferencesTask(Task):
    """A task whose rows have several accepted answers in `answers`.

    test_only_online: splits without public answers, which only the benchmark's server can score. annotators: the
    number of answers that the scoring rule assumes, 0 for any number.
    """

    columns = ("question", "answers")
    test_only_online: ClassVar[tuple[str, ...]] = ()
    annotators: ClassVar[int] = 0

    def open(self, split: str | None = None, limit: int | None = None, place: str | None = None) -> Docs:
        """As for all tasks; raises ConfigError, before any question is asked, if the answers are not public."""
        refused = f"split={split!r} of task {self.name!r} has no public answers, only the benchmark's server scores it"
        if place is None and split in self.test_only_online:
            raise ConfigError(f"{refused}; possible: {', '.join(self.splits)}")
        docs = super().open(split, limit, place)
        if len(docs) and "answers" in docs.columns and not any(map(self._answered, map(docs.text, range(len(docs))))):
            raise ConfigError(f"the data of task {self.name!r} has no answers in any row; possible: another split")
        return docs

    def _answered(self, doc: Mapping) -> bool:
        try:
            return references(doc.get("answers")) is not None
        except ConfigError:
            return True

    def reference(self, doc: Mapping) -> list[str] | None:
        """The accepted answers; None if they are not public."""
        return references(doc["answers"])

    def remarks(self, rows: Sequence[Mapping]) -> list[str]:
        """The usual remarks, and how many rows have fewer answers than the scoring rule assumes."""
        few = sum(len(row["reference"]) < self.annotators for row in rows)
        rule = f"fewer than the {self.annotators} answers that the rule assumes: an exact answer may score below 1"
        return [*super().remarks(rows), *([f"{few} of {len(rows)} samples have {rule}"] if few else [])]
