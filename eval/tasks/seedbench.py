"""SEED-Bench, image part: nine kinds of multiple-choice questions about pictures; 14,233 of the 17,990 questions.

    {"question": "How many boats are there?", "choice_a": "One", "choice_b": "Two", "choice_c": "Three",
     "choice_d": "None", "answer": "B", "data_type": "image", "question_type_id": 5, "question_id": "101669",
     "data_id": "1454426_2591111986", "segment": null, "image": [<picture>]}

Questions about videos (`data_type` video, frames in `image`) are left out: papers report the image part, as SEED-I.
Kinds 3 and 4 are instance location and instance attributes, but the benchmark's own documents disagree on their order.

Prompt: the question, the options, LLaVA's sentence (llava and lmms, which agree); Qwen's own form (qwen).
Scoring: in llava the answer must be exactly the letter; in lmms and qwen its first character must be, ignoring case.

Paper: https://arxiv.org/abs/2307.16125. Scoring: https://github.com/haotian-liu/LLaVA,
scripts/convert_seed_for_submission.py; https://github.com/EvolvingLMMs-Lab/lmms-eval, tasks/seedbench/utils.py.
"""

from collections.abc import Mapping

from vtc.eval.data.docs import Source
from vtc.eval.metrics.choice import seed, seed_letter
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import LETTER, lettered, qwen_choice
from vtc.eval.tasks._rows import first_id, known, letter_of, name_of, options_of, text_of

KINDS = (
    "scene understanding", "instance identity", "type 3", "type 4", "instances counting", "spatial relation",
    "instance interaction", "visual reasoning", "text understanding",
)  # fmt: skip


@TASKS.register("seedbench")
class SeedBench(Task):
    """Nine kinds of questions about pictures."""

    name = "seedbench"
    version = 2
    source = Source(("lmms-lab-encoder/SEED-Bench", "lmms-lab/SEED-Bench"))
    splits = ("test",)
    columns = ("question", "answer", ("choice_a", "options"))
    max_new_tokens = 128

    def wants(self, doc: Mapping) -> bool:
        """Whether the question is about a picture, not a video."""
        kind = known(doc.get("data_type"))
        return kind == "image" or not isinstance(kind, str)

    def prompt(self, doc: Mapping) -> str:
        """Question, options and instruction."""
        question, options = text_of(doc, "question"), self._options(doc)
        if self.dialect == "qwen":
            return qwen_choice(question, options)
        return f"{question}\n{lettered(options)}{LETTER}"

    def _options(self, doc: Mapping) -> dict[str, str]:
        if "options" in doc and "choice_a" not in doc:
            return options_of(doc["options"])
        return options_of({letter: doc.get(f"choice_{letter.lower()}") for letter in "ABCD"}, "choice_a to choice_d")

    def ident(self, doc: Mapping) -> str:
        """The question's id if it has one, else the row's number."""
        return first_id(doc, "question_id", "id")

    def category(self, doc: Mapping) -> str:
        """One of the nine kinds."""
        place = {str(number): kind for number, kind in enumerate(KINDS, 1)}
        return place.get(name_of(doc, "question_type_id"), self.name)

    def reference(self, doc: Mapping) -> str:
        """The letter; raises ConfigError for an answer that is not an option."""
        return letter_of(doc["answer"], self._options(doc))

    def score(self, reference: str, text: str) -> dict:
        """Whether the answer is, or begins with, the right letter."""
        letter = seed_letter(text).upper()
        right = text.strip() == reference if self.dialect == "llava" else seed(text, reference)
        return {"correct": float(right), "parsed": letter if letter in tuple("ABCD") else None}
