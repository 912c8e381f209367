"""Benchmarks: one file each, registered by name in `TASKS`; a task turns rows of data into prompts and scores.

A row of data (a `doc`) has the columns of the data set on the hub. From a doc come a prompt, pictures and a
`reference`; from a reference and the text of an answer come scores, so that saved answers are scored again without
the data; from scored rows come figures (`tally`, `figures`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtc.errors import ConfigError
from vtc.eval import figures
from vtc.eval.data import ROW, Docs, Source, open_source, picture
from vtc.registry import Registry, unknown

TASKS: Registry = Registry("task", "vtc.eval.tasks")
DIALECTS = {
    "llava": "prompts and scoring of LLaVA's own scripts",
    "lmms": "of lmms-eval",
    "qwen": "of VLMEvalKit for Qwen2-VL and Qwen2.5-VL",
}
PICTURE = "<picture>"  # in prompts of `inline` tasks: where a picture stands


@dataclass(frozen=True)
class Task(ABC):
    """One benchmark in one dialect; raises ConfigError for a dialect that does not exist.

    version: raised whenever prompts or scores change, so that old logs are not continued. source: where the data is
    on the hub. splits: the first is the default. pictures: columns that hold them. inline: prompts say with `PICTURE`
    where each picture stands; otherwise all come before the text. max_new_tokens: per answer. primary: the figure
    that tables and plots show, printed times `scale`. test_only_online: splits whose answers are not public.
    """

    dialect: str = "llava"

    name: ClassVar[str]
    version: ClassVar[int]
    source: ClassVar[Source | None] = None
    splits: ClassVar[tuple[str, ...]]
    pictures: ClassVar[tuple[str, ...]] = ("image",)
    inline: ClassVar[bool] = False
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
        data cannot be had.
        """
        docs = open_source(self.name, self.source, split or self.splits[0], self.pictures, place)
        return docs.where(self.wants).limited(limit, self.group)

    def wants(self, doc: Mapping) -> bool:
        """Whether a row of the data belongs to this task."""
        return True

    @abstractmethod
    def prompt(self, doc: Mapping) -> str:
        """The text of the user's turn."""

    @abstractmethod
    def score(self, reference: object, text: str) -> dict:
        """The scores of an answer. `correct`, in [0, 1], is the one that counts; `parsed` is what was understood of
        the text, None if nothing was (left out by tasks that compare the whole text)."""

    def ident(self, doc: Mapping) -> str:
        """A name for the doc that is unique in the split."""
        return str(doc.get("id", doc[ROW]))

    def group(self, doc: Mapping) -> str:
        """Docs that are scored, resampled and cut off together, such as both questions about a picture of MME."""
        return self.ident(doc)

    def category(self, doc: Mapping) -> str:
        """The kind of question, for figures per kind."""
        return self.name

    def images(self, doc: Mapping) -> list:
        """The pictures, PIL, in the order of the prompt."""
        found = []
        for column in self.pictures:
            value = doc.get(column)
            if value is not None:
                found += [picture(one, doc) for one in (value if isinstance(value, list) else [value])]
        return found

    def reference(self, doc: Mapping) -> object:
        """All that `score` needs of the doc, as JSON."""
        return doc["answer"]

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """What the answered rows (`category`, `score`) of one group add to the sums that `figures` reads."""
        return figures.tally(rows)

    def figures(self, sums: Mapping) -> dict:
        """Metrics by name from the sums over groups, which are numbers, or arrays of bootstrap replicates [R]."""
        return figures.accuracy(sums)
