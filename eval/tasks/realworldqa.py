"""RealWorldQA: 765 questions about photographs, many from cars; most have options, others ask for a word or number.

    {"question": "Where is the bus?\\n\\nA. Left.\\nB. Right.\\nPlease answer directly with only the letter of the
     correct option and nothing else.", "answer": "B", "image_path": "0.webp", "image": <picture>}

Other questions end with `Please answer directly with a single word or number.`

Prompt: the unchanged question (lmms, and llava, which has no script for it); Qwen's own forms (qwen), with the options
parsed from the question and without its last sentence. VLMEvalKit has options for the other questions too, which the
hub's data lacks; these questions get Qwen's form for short answers here.
Scoring, in all dialects: lmms-eval's letter finder if the right answer is A to D, else equality, ignoring case, outer
spaces and final full stops.

Announcement: https://x.ai/news/grok-1.5v. Scoring: https://github.com/EvolvingLMMs-Lab/lmms-eval,
tasks/realworldqa/utils.py.
"""

import re
from collections.abc import Mapping

from vtc.eval.data.docs import Source
from vtc.eval.metrics.choice import find_letter
from vtc.eval.metrics.short import realworldqa
from vtc.eval.tasks import TASKS, Task
from vtc.eval.tasks._prompts import qwen_choice, short_answer
from vtc.eval.tasks._rows import first_id, letter_of, plain, text_of

LAST = re.compile(r"\s*Please answer directly with [^\n]*$")
OPTION = re.compile(r"\n\s*([A-E])\. ([^\n]*)")


@TASKS.register("realworldqa")
class RealWorldQa(Task):
    """Photographs of streets and things."""

    name = "realworldqa"
    version = 2
    source = Source(("lmms-lab-encoder/RealWorldQA", "lmms-lab/RealWorldQA"))
    splits = ("test",)
    columns = ("question", "answer")
    max_new_tokens = 16

    def prompt(self, doc: Mapping) -> str:
        """The question, which says how to answer; rearranged in Qwen's dialect."""
        question = text_of(doc, "question").strip()
        if self.dialect != "qwen":
            return question
        question, options = LAST.sub("", question), _options(question)
        if not options:
            return short_answer(question, self.dialect)
        return qwen_choice(question[: OPTION.search(question).start()].rstrip(), options)

    def ident(self, doc: Mapping) -> str:
        """The row's id if it has one, else its number."""
        return first_id(doc, "id", "index")

    def category(self, doc: Mapping) -> str:
        """choice (the right answer is a letter) or open."""
        return "choice" if self.reference(doc).upper() in tuple("ABCD") else "open"

    def reference(self, doc: Mapping) -> str:
        """A letter, a word or a number; raises ConfigError if it is not one of the question's options."""
        options = _options(text_of(doc, "question"))
        return letter_of(doc["answer"], options) if options else plain(doc["answer"], "answer").strip()

    def score(self, reference: str, text: str) -> dict:
        """Whether the letter, or the whole answer, is right."""
        choice = reference.upper() in tuple("ABCD")
        parsed = find_letter(text, "ABCD") if choice else text.strip().rstrip(".").lower()
        return {"correct": realworldqa(text, reference), "parsed": parsed or None}


def _options(question: str) -> dict[str, str]:
    """The options in a question's text, by letter; empty for an open question."""
    return {letter: text.strip() for letter, text in OPTION.findall(LAST.sub("", question.strip()))}
