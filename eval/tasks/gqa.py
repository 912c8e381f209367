"""GQA: questions about scene graphs of everyday pictures, balanced test-dev, 12,578 questions on 398 pictures.

A row of `testdev_balanced_instructions` (columns that are used), and one of `testdev_balanced_images`:

    {"id": "20100001", "imageId": "n100001", "question": "Is the mug on the left of the plate?", "answer": "yes",
     "types": {"structural": "verify", "semantic": "rel", "detailed": "relVerify"}}
    {"id": "n100001", "image": <picture>}

Paper: https://arxiv.org/abs/1902.09506; official script: https://cs.stanford.edu/people/dorarad/gqa/evaluate.html.

Scoring is exact match with the one reference. llava: final full stops and capitals do not count. lmms and qwen: case
and punctuation do not count (VLMEvalKit's own rule for GQA leaves punctuation in). Articles count in all of them.
Figures per structural type of the question: choose, compare, logical, query, verify.

Prompts: the question and the order to use a single word or phrase; qwen has its own sentence.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vtc.errors import ConfigError
from vtc.eval.data import Docs, Source, open_source
from vtc.eval.metrics.short import gqa_llava, gqa_lmms
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import short_answer
from vtc.eval.tasks._references import first_id

IMAGES = "testdev_balanced_images"


@TASKS.register("gqa")
class GQA(Task):
    """Exact match on the balanced test-dev split."""

    name = "gqa"
    version = 1
    source = Source(("lmms-lab-encoder/GQA", "lmms-lab/GQA"), "testdev_balanced_instructions")
    splits = ("testdev",)
    max_new_tokens = 16

    def open(self, split: str | None = None, limit: int | None = None, place: str | None = None) -> Docs:
        """The questions with their pictures, which the hub keeps in another config: joined where `imageId` is its `id`.

        Rows of a local file that have an `image` column already are taken as they are. Raises ConfigError in one line
        if the data cannot be had, or if a question's picture is not there.
        """
        split = split or self.splits[0]
        docs = open_source(self.name, self.source, split, self.pictures, place)
        if len(docs) and "image" not in docs[0]:
            local = place is not None and Path(place).expanduser().exists()
            if local and not (Path(place).expanduser() / IMAGES).is_dir():
                raise ConfigError(f"rows of {place!r} have no column 'image', nor is there a folder {IMAGES!r} in it")
            images = Source((docs.record["id"],), IMAGES)
            docs = _joined(docs, open_source(self.name, images, split, self.pictures, place))
        return docs.where(self.wants).limited(limit, self.group)

    def category(self, doc: Mapping) -> str:
        """The structural type of the question."""
        types = doc.get("types")
        return (types.get("structural") if isinstance(types, Mapping) else None) or self.name

    def ident(self, doc: Mapping) -> str:
        """The question's `id`."""
        return first_id(doc, "id", "question_id")

    def prompt(self, doc: Mapping) -> str:
        """The question and the order to answer shortly."""
        return short_answer(doc["question"], self.dialect)

    def reference(self, doc: Mapping) -> str:
        """The answer."""
        return str(doc["answer"])

    def score(self, reference: str, text: str) -> dict:
        """Exact match by the dialect's rule."""
        return {"correct": (gqa_llava if self.dialect == "llava" else gqa_lmms)(text, reference)}


def _joined(docs: Docs, images: Docs) -> Docs:
    """The questions of `docs`, each with the picture of its `imageId` from `images`."""
    place = {str(images.text(i)["id"]): i for i in range(len(images))}
    wanted = [str(docs.text(i)["imageId"]) for i in range(len(docs))]
    missing = [name for name in wanted if name not in place]
    if missing:
        raise ConfigError(f"no picture for {len(missing)} of {len(docs)} questions of GQA, the first is {missing[0]!r}")
    return Docs(_Joined(docs, images, [place[name] for name in wanted]), docs.texts, docs.record)


class _Joined(Sequence[dict]):
    """Rows of questions with pictures; `where[i]` is the picture's row for question i."""

    def __init__(self, docs: Docs, images: Docs, where: Sequence[int]):
        self.docs, self.images, self.where = docs, images, where

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, i: int) -> dict:
        value = self.images.rows[self.where[i]]["image"]
        if isinstance(value, str):  # a path relative to the pictures' file
            value = str((self.images.folder or Path()) / value)
        return {**self.docs.rows[i], "image": value}
