"""ChartQA: questions about charts, test, 2,500 questions: 1,250 written by people, 1,250 generated from summaries.

A row (only the columns used):

    {"type": "human_test", "question": "In how many years were there more than 20?", "answer": "14", "image": <picture>}

Paper: https://arxiv.org/abs/2203.10244; the usual scoring code is that of pix2struct and Qwen-VL
(https://github.com/QwenLM/Qwen-VL, eval_mm/evaluate_vqa.py).

Scored by relaxed accuracy in all dialects: numbers may be 5 % off, anything else must be equal except for case. `1,000`
for 1000, `0.0` for 0 and `5%` for 5 are wrong. Figures: `accuracy` over all, `accuracy/human`, `accuracy/augmented`.

Prompts: llava and lmms ask for `a single word` here, not `a single word or phrase` (LLaVA has no script for ChartQA);
qwen has its own sentence.
"""

from collections.abc import Mapping

from vtc.eval.data.docs import Source
from vtc.eval.metrics.short import relaxed_accuracy
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import short_answer
from vtc.eval.tasks._rows import first_id, name_of, plain, text_of

ONE_WORD = "\nAnswer the question with a single word."


@TASKS.register("chartqa")
class ChartQA(Task):
    """Relaxed accuracy over all questions and for each of the two kinds."""

    name = "chartqa"
    version = 2
    source = Source(("lmms-lab-encoder/ChartQA", "lmms-lab/ChartQA"))
    splits = ("test",)
    columns = ("question", "answer")
    max_new_tokens = 16

    def ident(self, doc: Mapping) -> str:
        """The row's number, as rows on the hub have no id."""
        return first_id(doc, "id", "question_id")

    def category(self, doc: Mapping) -> str:
        """human or augmented."""
        return (name_of(doc, "type") or self.name).removesuffix("_test")

    def prompt(self, doc: Mapping) -> str:
        """The question and the instruction to answer with one word."""
        return short_answer(text_of(doc, "question"), self.dialect, ONE_WORD)

    def reference(self, doc: Mapping) -> str:
        """The answer."""
        return plain(doc["answer"], "answer")

    def score(self, reference: str, text: str) -> dict:
        """Relaxed accuracy."""
        return {"correct": relaxed_accuracy(text, reference)}
