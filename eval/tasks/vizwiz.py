"""VizWiz-VQA: questions that blind people asked about pictures they took, ten answers each, validation, 4,319 rows.

A row (only the columns used):

    {"question_id": "VizWiz_val_00000001", "image": <picture>, "question": "What is in this can?",
     "answers": ["tomato soup", "unanswerable", ... ten], "category": "other"}

Paper: https://arxiv.org/abs/1802.08218; site and script: https://vizwiz.org/tasks-and-datasets/vqa/.

Scored by soft accuracy against the ten answers after EvalAI's normalisation, in all dialects. There are also figures
for the two kinds of questions, answerable and unanswerable: a model that sees less may say "unanswerable" more often,
and so gain on one kind what it loses on the other.

Papers report the test split, whose answers are only on the evaluation server: figures here are for validation, are
labelled as such, and are only roughly comparable.

Prompts: llava and lmms ask for 'Unanswerable' if the picture does not give the answer; lmms capitalises the question's
first letter and lower-cases the rest, llava does not; qwen has only its own sentence for short answers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from vtc.eval.data.docs import Source
from vtc.eval.metrics.vqa import textvqa_accuracy
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._prompts import SHORT, short_answer
from vtc.eval.tasks._references import ReferencesTask, public, references
from vtc.eval.tasks._rows import first_id, name_of, text_of

DOUBT = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
KINDS = {"unanswerable": "unanswerable"} | dict.fromkeys(("answerable", "other", "number", "yes/no"), "answerable")
NO_ANSWER = ("unanswerable", "unsuitable", "unsuitable image")


@TASKS.register("vizwiz")
class VizWiz(ReferencesTask):
    """Soft accuracy on validation."""

    name = "vizwiz"
    version = 2
    source = Source(("lmms-lab-encoder/VizWiz-VQA", "lmms-lab/VizWiz-VQA"))
    splits = ("val",)
    test_only_online = ("test",)
    annotators = 10
    max_new_tokens = 128

    def ident(self, doc: Mapping) -> str:
        """The question's id, which is also its picture's."""
        return first_id(doc, "question_id", "image_id")

    def category(self, doc: Mapping) -> str:
        """answerable or unanswerable, by the answer type or, if the row has none, by the most common answer."""
        known = KINDS.get(str(name_of(doc, "category", "answer_type")).lower())
        answers = references(doc.get("answers"))
        if known or answers is None:
            return known or self.name
        commonest = Counter(answer.strip().lower() for answer in answers).most_common(1)[0][0]
        return "unanswerable" if commonest in NO_ANSWER else "answerable"

    def prompt(self, doc: Mapping) -> str:
        """The question, when to say `Unanswerable`, and the instruction to give a short answer."""
        question = text_of(doc, "question")
        question = question.capitalize() if self.dialect == "lmms" else question
        return short_answer(question, self.dialect, DOUBT + SHORT)

    def score(self, reference: Sequence[str], text: str) -> dict:
        """Soft accuracy; raises ConfigError without a reference."""
        return {"correct": textvqa_accuracy(text, public(reference, self.name))}
