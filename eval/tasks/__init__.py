"""Benchmarks: one file each, registered by name in `TASKS`; a task turns rows of data into prompts and scores."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtc.eval.metrics import accuracy
from vtc.registry import Registry

TASKS: Registry = Registry("task", "vtc.eval.tasks")


@dataclass(frozen=True)
class Task(ABC):
    """One benchmark. A `doc` is one row of its data, with whatever fields the task itself understands.

    version: raised whenever prompts or scores change, so that old logs are not continued. splits: the first is the
    default. max_new_tokens: per answer. primary: the figure of `aggregate` that tables and plots show.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    splits: ClassVar[tuple[str, ...]]
    max_new_tokens: ClassVar[int]
    primary: ClassVar[str] = "macro"

    @abstractmethod
    def docs(self, split: str, limit: int | None) -> Sequence[dict]:
        """The docs of a split in a fixed order, at most `limit` of them."""

    @abstractmethod
    def prompt(self, doc: dict) -> str:
        """The text that follows the pictures."""

    @abstractmethod
    def score(self, doc: dict, text: str) -> dict:
        """The scores of an answer; `correct`, in [0, 1], is the one that counts."""

    def ident(self, doc: dict) -> str:
        """A name for the doc that is unique in the split."""
        return str(doc["id"])

    def group(self, doc: dict) -> str:
        """The kind of question, for figures per kind."""
        return self.name

    def images(self, doc: dict) -> list:
        """The pictures, PIL."""
        return [doc["image"]]

    def reference(self, doc: dict) -> str:
        """The right answer, for the log."""
        return doc["answer"]

    def aggregate(self, rows: Sequence[dict]) -> dict:
        """Metrics of the answered rows of the sample log; see `vtc.eval.metrics.accuracy`."""
        return accuracy(rows)
