"""GQA: questions about scene graphs of everyday pictures, balanced test-dev, 12,578 questions on 398 pictures.

A row of `testdev_balanced_instructions` (columns that are used), and one of `testdev_balanced_images`:

    {"id": "20100001", "imageId": "n100001", "question": "Is the mug on the left of the plate?", "answer": "yes",
     "types": {"structural": "verify", "semantic": "rel", "detailed": "relVerify"}}
    {"id": "n100001", "image": <picture>}

Paper: https://arxiv.org/abs/1902.09506; official script: https://cs.stanford.edu/people/dorarad/gqa/evaluate.html.

Scoring is exact match with the only reference. llava: final full stops and case are ignored. lmms and qwen: case and
punctuation are ignored (VLMEvalKit's own rule for GQA keeps punctuation). Articles matter in all of them.
Figures per structural type of the question: choose, compare, logical, query, verify.

Prompts: the question and the instruction to use a single word or phrase; qwen has its own sentence.
"""

from collections.abc import Mapping, Sequence

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.docs import Docs, Source, local, open_source
from vtc.eval.metrics.short import gqa_llava, gqa_lmms
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import short_answer
from vtc.eval.tasks._rows import first_id, known, name_of, plain, text_of

IMAGES = "testdev_balanced_images"


@TASKS.register("gqa")
class GQA(Task):
    """Exact match on the balanced test-dev split."""

    name = "gqa"
    version = 2
    source = Source(("lmms-lab-encoder/GQA", "lmms-lab/GQA"), "testdev_balanced_instructions")
    splits = ("testdev",)
    columns = ("question", "answer")
    max_new_tokens = 16

    def load(self, split: str, place: str | None) -> Docs:
        """The questions joined with their pictures (`imageId` = `id`), which are in another config on the hub.

        Rows of a local file that already have an `image` column are used as they are. Raises ConfigError in one line
        if the data cannot be loaded, or if the picture of a question is missing.
        """
        docs = open_source(self.name, self.source, split, self.pictures, place)
        if "imageId" in docs.columns and "image" not in docs.columns:
            folder = None if place is None else local(place)
            if folder is not None and not (folder / IMAGES).is_dir():
                raise ConfigError(f"rows of {place!r} have no column 'image', nor is there a folder {IMAGES!r} in it")
            images = Source((docs.record["id"],), IMAGES)
            docs = _joined(docs, open_source(self.name, images, split, self.pictures, place))
        return docs

    def category(self, doc: Mapping) -> str:
        """The structural type of the question."""
        types = known(doc.get("types"))
        if types is not None and not isinstance(types, Mapping):
            raise ConfigError(f"types={shown(types)}; possible: a mapping with the structural type")
        return name_of(types or {}, "structural") or self.name

    def ident(self, doc: Mapping) -> str:
        """The question's `id`."""
        return first_id(doc, "id", "question_id")

    def prompt(self, doc: Mapping) -> str:
        """The question and the instruction to give a short answer."""
        return short_answer(text_of(doc, "question"), self.dialect)

    def reference(self, doc: Mapping) -> str:
        """The answer."""
        return plain(doc["answer"], "answer")

    def score(self, reference: str, text: str) -> dict:
        """Exact match by the dialect's rule."""
        return {"correct": (gqa_llava if self.dialect == "llava" else gqa_lmms)(text, reference)}


def _joined(docs: Docs, images: Docs) -> Docs:
    """The questions of `docs`, each with the picture of its `imageId` from `images`."""
    place = {str(images.text(i).get("id")): i for i in range(len(images))}
    image_ids = [str(docs.text(i).get("imageId")) for i in range(len(docs))]
    missing = [name for name in image_ids if name not in place]
    if missing:
        raise ConfigError(
            f"no picture for {len(missing)} of {len(docs)} questions of GQA, the first is {shown(missing[0])}"
        )
    rows = _Joined(docs, images, [place[name] for name in image_ids])
    return Docs(rows, docs.texts, docs.record, folder=images.folder)


class _Joined(Sequence[dict]):
    """Rows of questions with pictures; `where[i]` is the index of the picture's row for question i."""

    def __init__(self, docs: Docs, images: Docs, where: Sequence[int]):
        self.docs, self.images, self.where = docs, images, where
        self.column_names = [*docs.columns, "image"]

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, i: int) -> dict:
        return {**self.docs.rows[i], "image": self.images.rows[self.where[i]].get("image")}
