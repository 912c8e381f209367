"""The bundled benchmark: seven kinds of questions about generated scenes of coloured shapes, one right answer each.

A row:

    {"id": "test-00000", "image": <112 x 112 RGB>, "question": "What color is the cross?", "answer": "green",
     "type": "color"}

An answer is right if it equals the reference after stripping, lower-casing and dropping a final full stop. The figure
to compare is `macro`, the mean over the seven kinds. Samples are generated, not read: their number is unlimited, and a
number always gives the same sample. Tune on `tune`, report on `test`; `train` is what the demo model saw.
"""

from collections.abc import Mapping

from vtc.core.errors import ConfigError
from vtc.demo import benchmark
from vtc.eval.data.docs import Docs
from vtc.eval.tasks import TASKS, Task

ENOUGH = 700  # samples when no limit is given: 100 of each kind


@TASKS.register("demo")
class Demo(Task):
    """Questions about generated scenes; the same prompts in every dialect."""

    name = "demo"
    version = 2
    splits = ("test", "tune", "train")
    max_new_tokens = 4
    primary = "macro"

    def open(self, split: str | None = None, limit: int | None = None, place: str | None = None) -> Docs:
        """The first samples of a split; raises ConfigError for an unknown split or a place."""
        split = split or self.splits[0]
        if split not in self.splits:
            raise ConfigError(f"split={split!r} is unknown to task 'demo'; possible: {', '.join(self.splits)}")
        if place is not None:
            raise ConfigError(f"--dataset-path {place!r} is not for task 'demo'; possible: none, it is generated")
        rows = list(benchmark.samples(split, ENOUGH if limit is None else limit))
        return Docs(rows, rows, {"id": "generated", "split": split})

    def category(self, doc: Mapping) -> str:
        """color, shape, exist, position, count, ocr or relation."""
        return doc["type"]

    def prompt(self, doc: Mapping) -> str:
        """The bare question, as the demo model was trained without instructions."""
        return doc["question"]

    def score(self, reference: str, text: str) -> dict:
        """Exact match."""
        return {"correct": float(benchmark.is_correct(reference, text))}
