"""VQA v2: questions about COCO pictures with ten answers each, validation, 214,354 questions.

A row (only the columns used):

    {"question_id": 100001000, "image": <picture>, "question": "What is on the table?", "answer_type": "other",
     "answers": [{"answer": "mug", "answer_confidence": "yes", "answer_id": 1}, ... ten]}

Paper: https://arxiv.org/abs/1612.00837; official script: https://github.com/GT-Vision-Lab/VQA.

Scored by soft accuracy against the ten answers (see `vtc.eval.metrics.vqa`), in all dialects alike: `accuracy` is
that of lmms-eval, which fully normalises answers and references; `server` is that of the official script, which only
removes punctuation from references and is used by the evaluation server. Figures per answer type: yes/no, number,
other.

Papers report test-dev or test, whose answers are only on the server: figures here are for validation, are labelled as
such, and are only roughly comparable.

Prompts: the question and the instruction to use a single word or phrase; qwen has its own sentence.
"""

from collections.abc import Mapping, Sequence

from vtc.eval.data.docs import Source
from vtc.eval.metrics import aggregate
from vtc.eval.metrics.vqa import vqa_accuracy, vqa_accuracy_server
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._prompts import short_answer
from vtc.eval.tasks._references import ReferencesTask, public
from vtc.eval.tasks._rows import first_id, name_of, text_of


@TASKS.register("vqav2")
class VQAv2(ReferencesTask):
    """Soft accuracy on validation."""

    name = "vqav2"
    version = 2
    source = Source(("lmms-lab-encoder/VQAv2", "lmms-lab/VQAv2"))
    splits = ("validation",)
    test_only_online = ("testdev", "test")
    annotators = 10
    max_new_tokens = 16

    def ident(self, doc: Mapping) -> str:
        """The question's id."""
        return first_id(doc, "question_id")

    def category(self, doc: Mapping) -> str:
        """The type of the answer: yes/no, number or other."""
        return name_of(doc, "answer_type") or self.name

    def prompt(self, doc: Mapping) -> str:
        """The question and the instruction to give a short answer."""
        return short_answer(text_of(doc, "question"), self.dialect)

    def score(self, reference: Sequence[str], text: str) -> dict:
        """`correct` as lmms-eval, `server` as the official script; raises ConfigError without a reference."""
        answers = public(reference, self.name)
        return {"correct": vqa_accuracy(text, answers), "server": vqa_accuracy_server(text, answers)}

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """The usual sums, and that of `server`."""
        return {**aggregate.tally(rows), "server": sum(float(row["score"]["server"]) for row in rows)}

    def figures(self, sums: Mapping) -> dict:
        """`accuracy`, `server`, `macro` and one per answer type."""
        questions = sum(sums[f"n/{name}"] for name in aggregate.names(sums))
        return {**aggregate.accuracy(sums), "server": aggregate.ratio(sums["server"], questions)}
