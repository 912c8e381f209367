"""MLVU, the multiple-choice part of its development set: seven kinds of questions about videos of 3 minutes to 2 hours.

    {"video_name": "needle_1.mp4", "duration": 480.0, "question": "What does the hand hold?\\n(A) A pen\\n(B) A key",
     "answer": "B", "task_type": "needle"}
    {"video": "needle_1.mp4", "duration": 480.0, "question": "What does the hand hold?", "answer": "A key",
     "candidates": ["A pen", "A key"], "task_type": "needle"}

The first is a row of the hub's copy for lmms-eval, whose question holds the options; the second one of the authors'
own files, with the kind added. Both forms are read. Columns are those that lmms-eval and VLMEvalKit read, not checked
against the hub. Videos may lie below their kind's folder, such as `2_needle`. The authors' two open-ended kinds need a
judge and are left out.

Prompt: the question, the options and lmms-eval's last sentences (llava, lmms); VLMEvalKit's, with the clip between the
options and the last sentence (qwen; what it makes a system turn begins the user's turn here).
Scoring: lmms-eval's letter finder (llava, lmms); the rule of `vtc.eval.metrics.video` for VLMEvalKit (qwen). `macro`,
the mean over the kinds, is the M-Avg of papers.

Paper: https://arxiv.org/abs/2406.04264. Scoring: https://github.com/EvolvingLMMs-Lab/lmms-eval 0.7.3,
tasks/mlvu/utils.py; https://github.com/open-compass/VLMEvalKit, vlmeval/dataset/mlvu.py.
"""

import re
from collections.abc import Mapping, Sequence

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.docs import Source
from vtc.eval.metrics.choice import find_letter
from vtc.eval.metrics.video import mlvu_vlmevalkit
from vtc.eval.tasks import PICTURE, TASKS
from vtc.eval.tasks._rows import first_id, known, letter_of, letter_of_text, name_of, options_of, plain, text_of
from vtc.eval.tasks._video import VideoTask, bracketed, one

FOLDERS = {
    kind: f"{number}_{kind}"
    for number, kind in enumerate(
        ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning", "sub_scene", "summary"), 1
    )
}
OPEN_ENDED = ("sub_scene", "subPlot", "summary")
HEAD = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question."
)
ONLY = "\nOnly give the best option."
OPTION = re.compile(r"\n\s*\(([A-Z])\)\s*([^\n]*)")


@TASKS.register("mlvu_dev")
class MlvuDev(VideoTask):
    """Seven kinds of questions about long videos."""

    name = "mlvu_dev"
    version = 1
    source = Source(("sy1998/MLVU_dev",))
    splits = ("test",)
    columns = ("question", "answer", ("video_name", "video"))
    inline = True
    primary = "macro"

    def wants(self, doc: Mapping) -> bool:
        """Whether the question has options."""
        return self.category(doc) not in OPEN_ENDED

    def prompt(self, doc: Mapping) -> str:
        """The question and the options."""
        question, options = self._question(doc), bracketed(self.options(doc))
        if self.dialect == "qwen":
            return f"{HEAD}Question: {question}\nOptions:\n{options}{PICTURE}{ONLY}"
        return f"{question}\n{options}{ONLY}\nBest option: ("

    def _question(self, doc: Mapping) -> str:
        """The question without options."""
        text = text_of(doc, "question")
        match = None if known(doc.get("candidates")) is not None else OPTION.search(text)
        return text if match is None else text[: match.start()]

    def video_names(self, doc: Mapping) -> list[str]:
        """The file, also below the folder of its kind."""
        video, kind = name_of(doc, "video_name", "video"), FOLDERS.get(self.category(doc))
        if video is None:
            raise ConfigError("the row names no video; possible: video_name or video")
        return [video, *([f"{kind}/{video}"] if kind else [])]

    def options(self, doc: Mapping) -> dict[str, str]:
        """The candidates, or the options in the question."""
        if known(doc.get("candidates")) is not None:
            return options_of(doc["candidates"], "candidates")
        listed = OPTION.findall(text_of(doc, "question"))
        if [letter for letter, _ in listed] != sorted({letter for letter, _ in listed}):
            raise ConfigError(f"question={shown(doc['question'])} has options out of order; possible: (A), (B), ...")
        return options_of(dict(listed), "question")

    def answer(self, doc: Mapping, options: Mapping[str, str]) -> str:
        """A letter, or the letter of the candidate."""
        by_text = known(doc.get("candidates")) is not None
        return (letter_of_text if by_text else letter_of)(doc["answer"], options)

    def ident(self, doc: Mapping) -> str:
        """The row's id if it has one, else its number."""
        return first_id(doc, "question_id", "id", "index")

    def category(self, doc: Mapping) -> str:
        """One of the seven kinds."""
        return plain(known(doc.get("task_type")) or known(doc.get("question_type")) or self.name, "task_type")

    def read(self, text: str, options: Mapping[str, str]) -> Sequence[str]:
        """The letter, or two that both count."""
        return mlvu_vlmevalkit(text, options) if self.dialect == "qwen" else one(find_letter(text, "ABCD"))
