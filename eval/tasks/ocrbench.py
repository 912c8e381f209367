"""OCRBench: 1,000 questions about text in pictures, of ten kinds, from 29 data sets.

A row (only the columns used):

    {"dataset": "IIIT5K", "question": "what is written in the image?", "question_type": "Regular Text Recognition",
     "answer": ["HARBOUR"], "image": <picture>}

Paper: https://arxiv.org/abs/2305.07895; official script: https://github.com/Yuliang-Liu/MultimodalOCR.

An answer is right if it contains one of the references, ignoring case and line breaks; for formulas (`HME100k`) case
matters and spaces are ignored. A long answer that lists a lot is therefore right more often. The figure is the number
of right answers out of 1,000: `accuracy` is printed times 1000. The scoring is the same in all dialects. Figures per
`question_type`: Regular, Irregular and Artistic Text Recognition, Handwriting, Digit String and Non-Semantic Text
Recognition (50 each), Scene Text-centric VQA, Doc-oriented VQA, Key Information Extraction (200 each), Handwritten
Mathematical Expression Recognition (100).

Prompts: the bare question in llava and lmms; qwen adds its sentence for short answers.
"""

from collections.abc import Mapping, Sequence

from vtc.eval.data.docs import Source
from vtc.eval.metrics.short import ocrbench
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import short_answer
from vtc.eval.tasks._references import public, references
from vtc.eval.tasks._rows import first_id, name_of, text_of


@TASKS.register("ocrbench")
class OCRBench(Task):
    """Containment of a reference; in points out of 1,000."""

    name = "ocrbench"
    version = 2
    source = Source(("echo840/OCRBench",))
    splits = ("test",)
    columns = ("question", "answer")
    max_new_tokens = 128
    scale = 1000.0

    def ident(self, doc: Mapping) -> str:
        """The row's number, as rows on the hub have no id."""
        return first_id(doc, "id", "question_id")

    def category(self, doc: Mapping) -> str:
        """The kind of question."""
        return name_of(doc, "question_type") or self.name

    def prompt(self, doc: Mapping) -> str:
        """The question, stripped."""
        return short_answer(text_of(doc, "question").strip(), self.dialect, suffix="")

    def reference(self, doc: Mapping) -> dict | None:
        """The accepted answers, and the data set, which decides how they are compared."""
        answers = references(doc["answer"])
        nonblank = [answer for answer in answers or () if answer.strip()]  # a blank is contained in every answer
        return answers and {"answers": nonblank, "dataset": name_of(doc, "dataset") or ""}

    def score(self, reference: Mapping[str, str | Sequence[str]], text: str) -> dict:
        """Whether the answer contains a reference; raises ConfigError without a reference."""
        known = public(reference, self.name)
        return {"correct": ocrbench(text, known["answers"], known["dataset"])}
