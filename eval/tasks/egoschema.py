"""EgoSchema, the subset with public answers: 500 questions about three minutes seen by the person who acts in them.

    {"question_idx": "12", "question": "What is C mainly doing?", "video_idx": "0a1b-2c3d", "answer": "2",
     "option": ["A. C cooks.", "B. C paints.", "C. C repairs a bicycle.", "D. C reads.", "E. C cleans."]}

The answers to all 5,031 questions are on the authors' server, so the config is `Subset`. The video is `video_idx`. The
columns are those that lmms-eval reads, not checked against the hub; options are read with or without letters.

Prompt: the question, the options and LLaVA's sentence (llava, lmms); VLMEvalKit has no EgoSchema, so qwen is its form
for other questions with options.
Scoring: the rule of `vtc.eval.metrics.video` for lmms-eval (llava, lmms), which draws a letter where there is none, so
that the answer is wrong here; VLMEvalKit's letter without a judge (qwen).

Paper: https://arxiv.org/abs/2308.09126. Scoring: https://github.com/EvolvingLMMs-Lab/lmms-eval 0.7.3,
tasks/egoschema/utils.py.
"""

from collections.abc import Mapping, Sequence

from vtc.eval.data.docs import Source
from vtc.eval.metrics.choice import vlmevalkit_letter
from vtc.eval.metrics.video import egoschema_lmms
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._prompts import LETTER, lettered, qwen_choice
from vtc.eval.tasks._rows import first_id, letter_of, options_of, plain, text_of
from vtc.eval.tasks._video import VideoTask, bare, one


@TASKS.register("egoschema")
class EgoSchema(VideoTask):
    """Three minutes of everyday life in the first person."""

    name = "egoschema"
    version = 1
    source = Source(("lmms-eval/egoschema", "lmms-lab/egoschema"), "Subset")
    splits = ("test",)
    columns = ("question", "option", "answer", "video_idx")

    def prompt(self, doc: Mapping) -> str:
        """The question, the options and the instruction."""
        question, options = text_of(doc, "question"), self.options(doc)
        if self.dialect == "qwen":
            return qwen_choice(question, options)
        return f"{question}\n{lettered(options)}{LETTER}"

    def video_names(self, doc: Mapping) -> list[str]:
        """The video's id."""
        return [plain(doc["video_idx"], "video_idx") + ".mp4"]

    def options(self, doc: Mapping) -> dict[str, str]:
        """Five options."""
        return bare(options_of(doc["option"], "option"))

    def answer(self, doc: Mapping, options: Mapping[str, str]) -> str:
        """The letter of the place."""
        return letter_of(doc["answer"], options)

    def ident(self, doc: Mapping) -> str:
        """The question's number, else the row's."""
        return first_id(doc, "question_idx")

    def read(self, text: str, options: Mapping[str, str]) -> Sequence[str]:
        """The letter."""
        return one((vlmevalkit_letter if self.dialect == "qwen" else egoschema_lmms)(text, options))
