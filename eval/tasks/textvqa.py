"""TextVQA: questions about text in pictures with ten answers each, validation, 5,000 questions.

Two tasks: `textvqa` asks only the question; `textvqa_ocr` adds the words that an OCR system read in the picture, as
in LLaVA's file of questions, which gives the 58.2 (7B) and 61.3 (13B) of LLaVA-1.5 that papers quote. Figures without
these words are far lower: never compare the two.

A row (only the columns used):

    {"question_id": 30001, "image": <picture>, "question": "what does the sign say?",
     "ocr_tokens": ["NO", "PARKING"], "answers": ["no parking", "parking", ... ten]}

Paper: https://arxiv.org/abs/1904.08920; scripts: https://github.com/haotian-liu/LLaVA, llava/eval/eval_textvqa.py and
m4c_evaluator.py; https://github.com/facebookresearch/mmf.

Scored by soft accuracy against the ten answers after EvalAI's normalisation, in all dialects: LLaVA's evaluator and
lmms-eval agree.

Prompts: the question and the instruction to use a single word or phrase; with OCR a line `Reference OCR token: a, b`
between them, even if no words were read. lmms capitalises the question's first letter and lower-cases the rest, llava
does not. qwen has its own last sentence; VLMEvalKit has no form with OCR tokens, so `textvqa_ocr` only adds the line.
"""

from collections.abc import Mapping, Sequence

from vtc.core.errors import ConfigError
from vtc.eval.data.docs import Source
from vtc.eval.metrics.vqa import textvqa_accuracy
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._prompts import short_answer
from vtc.eval.tasks._references import ReferencesTask, public
from vtc.eval.tasks._rows import first_id, listed, plain, text_of


@TASKS.register("textvqa")
class TextVQA(ReferencesTask):
    """Soft accuracy on validation, without OCR tokens."""

    name = "textvqa"
    version = 2
    source = Source(("lmms-lab-encoder/textvqa", "lmms-lab/textvqa"))
    splits = ("validation",)
    test_only_online = ("test",)
    annotators = 10
    max_new_tokens = 128

    def ident(self, doc: Mapping) -> str:
        """The question's id."""
        return first_id(doc, "question_id")

    def prompt(self, doc: Mapping) -> str:
        """The question and the instruction to give a short answer."""
        return short_answer(self._question(doc), self.dialect)

    def _question(self, doc: Mapping) -> str:
        question = text_of(doc, "question")
        return question.capitalize() if self.dialect == "lmms" else question

    def score(self, reference: Sequence[str], text: str) -> dict:
        """Soft accuracy; raises ConfigError without a reference."""
        return {"correct": textvqa_accuracy(text, public(reference, self.name))}


@TASKS.register("textvqa_ocr")
class TextVQAWithOCR(TextVQA):
    """Soft accuracy on validation, with OCR tokens in the prompt, as in papers on LLaVA-1.5."""

    name = "textvqa_ocr"
    columns = (*TextVQA.columns, "ocr_tokens")

    def _question(self, doc: Mapping) -> str:
        if "ocr_tokens" not in doc:
            raise ConfigError("task 'textvqa_ocr' needs a column 'ocr_tokens'; possible: task 'textvqa'")
        words = (plain(word, "ocr_tokens") for word in listed(doc["ocr_tokens"], "ocr_tokens"))
        return f"{super()._question(doc)}\nReference OCR token: {', '.join(words)}"
