"""AI2D: multiple-choice questions about diagrams from primary-school science, test, 3,088 questions.

A row (only the columns used; `answer` is the index of the right option, from 0):

    {"question": "Which animal eats the grass?", "options": ["owl", "rabbit", "fox", "snake"], "answer": "1",
     "image": <picture>}

Paper: https://arxiv.org/abs/1603.07396. Labels in the pictures that would give away the answer are covered; the version
without covers (`ai2d_no_mask` of lmms-eval) is another benchmark, whose figures are not comparable.

Scoring: llava and lmms as in lmms-eval (LLaVA has no script for AI2D): the answer must be the letter, or begin with
the letter and a full stop; case and punctuation are ignored. A longer answer such as `The answer is B` is wrong.
qwen: VLMEvalKit's exact matching, which finds the letter or the option's text in a longer answer; an answer with
neither is wrong.

Prompts: in llava and lmms the question, the options with letters, and the instruction to give the letter; qwen has its
own form.
"""

from collections.abc import Mapping

from vtc.eval.data.docs import Source
from vtc.eval.metrics.choice import ai2d_answer, vlmevalkit_letter, without_punctuation
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import LETTER, lettered, qwen_choice
from vtc.eval.tasks._rows import first_id, letter_of, options_of, text_of


@TASKS.register("ai2d")
class AI2D(Task):
    """Accuracy over all questions."""

    name = "ai2d"
    version = 2
    source = Source(("lmms-lab-encoder/ai2d", "lmms-lab/ai2d"))
    splits = ("test",)
    columns = ("question", "options", "answer")
    max_new_tokens = 16

    def ident(self, doc: Mapping) -> str:
        """The row's number, as rows on the hub have no id."""
        return first_id(doc, "id", "question_id")

    def prompt(self, doc: Mapping) -> str:
        """The question with its options; `options` is a list, or a mapping from letters."""
        question, options = text_of(doc, "question"), options_of(doc["options"])
        if self.dialect == "qwen":
            return qwen_choice(question, options)
        return f"{question}\n{lettered(options)}{LETTER}"

    def reference(self, doc: Mapping) -> dict:
        """The right letter, and the options by letter; raises ConfigError if the answer is none of them."""
        options = options_of(doc["options"])
        return {"answer": letter_of(doc["answer"], options), "options": options}

    def score(self, reference: Mapping, text: str) -> dict:
        """Whether the letter that the dialect's rule reads is the right one; `parsed` is None if it reads none."""
        if self.dialect == "qwen":
            parsed = vlmevalkit_letter(text, reference["options"])
        else:
            parsed = without_punctuation(ai2d_answer(text).strip()).upper()
        parsed = parsed if parsed in reference["options"] else None
        return {"correct": float(parsed == reference["answer"]), "parsed": parsed}
