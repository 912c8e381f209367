"""Benchmarks: one file each, registered by name in `TASKS`; a task turns rows of data into prompts and scores.

A row of data (a `doc`) has the columns of the data set on the hub. A doc gives a prompt, pictures and a `reference`; a
reference and the text of an answer give scores, so that saved answers can be scored again without the data; scored rows
give figures (`tally`, `figures`).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtc.core.errors import ConfigError, shown
from vtc.core.registry import Registry, unknown
from vtc.eval.data.clips import Clip
from vtc.eval.data.docs import FAULT, FOLDER, ROW, Docs, Source, open_source
from vtc.eval.data.pictures import nothing, picture
from vtc.eval.metrics import aggregate

TASKS: Registry = Registry("task", "vtc.eval.tasks", "vtc.tasks", lambda: (Task,))
DIALECTS = {
    "llava": "prompts and scoring of LLaVA's own scripts",
    "lmms": "of lmms-eval",
    "qwen": "of VLMEvalKit for Qwen2-VL and Qwen2.5-VL",
}
PICTURE = "<picture>"  # in prompts of `inline` tasks: the place of a picture or clip


@dataclass(frozen=True)
class Task(ABC):
    """One benchmark in one dialect; raises ConfigError for a dialect that does not exist.

    version: increased whenever prompts or scores change, so that old logs are not continued. source: the data on the
    hub, None for a task that needs `--dataset-path` or generates its data. splits: the first is the default. columns:
    the required columns; of several in a tuple one is enough. pictures: columns with pictures. inline: prompts contain
    `PICTURE` in place of each picture or clip; otherwise these all come before the text. takes_clips: questions are
    about videos, see `vtc.eval.tasks._video`. max_new_tokens: per answer.
    primary: the figure that tables and plots show, printed times `scale`. test_only_online: splits whose answers are
    not public.
    """

    dialect: str = "llava"

    name: ClassVar[str]
    version: ClassVar[int]
    source: ClassVar[Source | None] = None
    splits: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[str | tuple[str, ...], ...]] = ()
    pictures: ClassVar[tuple[str, ...]] = ("image",)
    inline: ClassVar[bool] = False
    takes_clips: ClassVar[bool] = False
    max_new_tokens: ClassVar[int]
    primary: ClassVar[str] = "accuracy"
    scale: ClassVar[float] = 100.0
    test_only_online: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if self.dialect not in DIALECTS:
            raise ConfigError(unknown("dialect", self.dialect, list(DIALECTS)))

    def open(self, split: str | None = None, limit: int | None = None, place: str | None = None) -> Docs:
        """The docs of a split in a fixed order: all, or as many whole groups as fit into `limit` (at least one).

        place: a local folder or file, or a hub id, instead of the task's own. Raises ConfigError in one line if the
        data cannot be loaded.
        """
        docs = self.load(split or self.splits[0], place)
        return docs.where(self._belongs).limited(limit, lambda doc: self.names(doc)["group"])

    def load(self, split: str, place: str | None) -> Docs:
        """All rows of a split; raises ConfigError in one line if they cannot be loaded."""
        return open_source(self.name, self.source, split, self.pictures, place)

    def check(self, docs: Docs) -> None:
        """Raises ConfigError, before any question is asked, if there are no docs or a required column is missing."""
        if not len(docs):
            raise ConfigError(f"the data of task {self.name!r} has no row for it; possible: another split or place")
        existing = docs.columns
        needed = [(one,) if isinstance(one, str) else one for one in self.columns]
        if self.pictures and any(self.needs_picture(docs.text(i)) for i in range(len(docs))):
            needed.append(self.pictures)
        missing = [" or ".join(map(repr, names[:3])) for names in needed if not set(names) & set(existing)]
        if missing:
            listing = ", ".join(map(shown, existing[:12])) + (", ..." if len(existing) > 12 else "")
            raise ConfigError(
                f"the data of task {self.name!r} has no column {', no '.join(missing)}; there are: {listing}"
            )

    def _belongs(self, doc: Mapping) -> bool:
        """`wants`, but True for a row that cannot be read: it becomes an error row."""
        try:
            return bool(doc.get(FAULT)) or self.wants(doc)
        except Exception:
            return True

    def wants(self, doc: Mapping) -> bool:
        """Whether a row of the data belongs to this task."""
        return True

    @abstractmethod
    def prompt(self, doc: Mapping) -> str:
        """The text of the user's turn."""

    @abstractmethod
    def score(self, reference: object, text: str) -> dict:
        """The scores of an answer. `correct`, in [0, 1], is the main one; `parsed` is the answer that was recognised in
        the text, None if there was none (left out by tasks that compare the whole text)."""

    def ident(self, doc: Mapping) -> str:
        """An id of the doc that is unique in the split."""
        return str(doc.get("id", doc[ROW]))

    def group(self, doc: Mapping) -> str:
        """The group of docs that are scored, resampled and limited together, as both questions on a picture of MME."""
        return self.ident(doc)

    def category(self, doc: Mapping) -> str:
        """The kind of question, for separate figures."""
        return self.name

    def names(self, doc: Mapping) -> dict[str, str]:
        """`id`, `group` and `category` of any row; those that it does not give are derived from its number."""
        if doc.get(FAULT):
            return {"id": f"row {doc[ROW]}", "group": f"row {doc[ROW]}", "category": self.name}
        ident = _text(self.ident, doc) or f"row {doc[ROW]}"
        category = _text(self.category, doc) or self.name
        return {"id": ident, "group": _text(self.group, doc) or ident, "category": category}

    def asked(self, doc: Mapping) -> dict:
        """`id`, `group`, `category`, `prompt` and `reference` of a row; raises whatever reading its data raises, and
        ConfigError for a text that cannot be written, such as one with a lone surrogate."""
        if doc.get(FAULT):
            raise ConfigError(f"row {doc[ROW]}: {doc[FAULT]}")
        row = {"id": self.ident(doc), "group": self.group(doc), "category": self.category(doc)}
        row |= {"prompt": self.prompt(doc), "reference": self.reference(doc)}
        try:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            kind = "a lone surrogate" if isinstance(error, UnicodeError) else "a value"
            raise ConfigError(f"row {doc[ROW]} holds {kind} that cannot be written") from None
        return row

    def needs_picture(self, doc: Mapping) -> bool:
        """Whether the question needs a picture; without one it is not asked."""
        return True

    def images(self, doc: Mapping) -> list:
        """The pictures, PIL in RGB, in the order of the prompt; raises ConfigError for one that is missing or broken,
        and if there is none where the question needs one."""
        cells = [value for column in self.pictures if not nothing(value := doc.get(column))]
        values = [one for cell in cells for one in (cell if isinstance(cell, list) else [cell])]
        if not values and self.needs_picture(doc):
            raise ConfigError(f"no picture in {' or '.join(map(repr, self.pictures))}")
        return [picture(one, doc.get(FOLDER)) for one in values]

    def clips(self, doc: Mapping) -> list[Clip]:
        """The clips, in the order of the prompt; raises ConfigError for a video that is missing or cannot be read."""
        return []

    def reference(self, doc: Mapping) -> object:
        """Everything that `score` needs from the doc, as JSON values."""
        return doc["answer"]

    def remarks(self, rows: Sequence[Mapping]) -> list[str]:
        """Remarks on these answered rows (`reference`, `score`) for readers of their figures, one line each."""
        unread = sum("parsed" in row["score"] and row["score"]["parsed"] is None for row in rows)
        return [f"{unread} of {len(rows)} answers could not be read and count as wrong"] if unread else []

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """The contribution of one group's answered rows (`category`, `score`) to the sums that `figures` reads."""
        return aggregate.tally(rows)

    def figures(self, sums: Mapping) -> dict:
        """Figures by name from the sums over groups, which are numbers or arrays of bootstrap replicates [R]."""
        return aggregate.accuracy(sums)


def _text(call: Callable[[Mapping], object], doc: Mapping) -> str | None:
    """The text that `call` returns for a row, None if it raises or returns anything but encodable text."""
    try:
        value = call(doc)
        return value if isinstance(value, str) and value.encode() else None
    except Exception:
        return None
