"""Video-MME: 900 videos of 11 seconds to an hour with three multiple-choice questions each; 2,700 questions.

    {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Humanity & History",
     "url": "https://...", "videoID": "abc123", "question_id": "001-1", "task_type": "Counting Problem",
     "question": "How many boats pass?", "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."], "answer": "B"}

The video is `videoID`, as a file or a folder of frames. Without subtitles only. Options are read with or without
letters of their own; the columns are those that lmms-eval and VLMEvalKit read, not checked against the hub.

Prompt: lmms-eval's, which speaks of subtitles also where there are none, with its last sentence for LLaVA-Video (llava)
or for all other models (lmms); VLMEvalKit's after the clip (qwen).
Scoring: lmms-eval's letter finder (llava, lmms); the first capital of A to D, else VLMEvalKit's letter without a judge
(qwen). Figures by length: short, medium and long.

Paper: https://arxiv.org/abs/2405.21075. Scoring: https://github.com/EvolvingLMMs-Lab/lmms-eval 0.7.3,
tasks/videomme/utils.py; https://github.com/open-compass/VLMEvalKit, vlmeval/dataset/videomme.py.
"""

from collections.abc import Mapping, Sequence

from vtc.eval.data.docs import Source
from vtc.eval.metrics.choice import find_letter, vlmevalkit_letter
from vtc.eval.metrics.video import VLMEVALKIT_PHRASES, first_letter
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._prompts import LETTER, lettered
from vtc.eval.tasks._rows import first_id, letter_of, name_of, options_of, plain, text_of
from vtc.eval.tasks._video import VideoTask, bare, one

SELECT = "Select the best answer to the following multiple-choice question based on the video"
ONLY = "Respond with only the letter (A, B, C, or D) of the correct option."
FRAMES = "\nThese are the frames of a video. "


@TASKS.register("videomme")
class VideoMme(VideoTask):
    """Short, medium and long videos of all kinds."""

    name = "videomme"
    version = 1
    source = Source(("lmms-eval/Video-MME", "lmms-lab/Video-MME"), "videomme")
    splits = ("test",)
    columns = ("question", "options", "answer", "videoID")

    def prompt(self, doc: Mapping) -> str:
        """The instruction, the question and the options."""
        question = f"{text_of(doc, 'question')}\n{lettered(self.options(doc))}"
        if self.dialect == "qwen":
            return f"{FRAMES}{SELECT}. {ONLY}\nQuestion: {question}\nAnswer: "
        last = "The best answer is:" if self.dialect == "llava" else LETTER
        return f"{SELECT} and the subtitles. {ONLY}\n{question}\n{last}"

    def video_names(self, doc: Mapping) -> list[str]:
        """The video's id on its site."""
        return [plain(doc["videoID"], "videoID") + ".mp4"]

    def options(self, doc: Mapping) -> dict[str, str]:
        """Four options."""
        return bare(options_of(doc["options"]))

    def answer(self, doc: Mapping, options: Mapping[str, str]) -> str:
        """A letter."""
        return letter_of(doc["answer"], options)

    def ident(self, doc: Mapping) -> str:
        """The question's id, else the row's number."""
        return first_id(doc, "question_id")

    def category(self, doc: Mapping) -> str:
        """short, medium or long."""
        return name_of(doc, "duration") or self.name

    def read(self, text: str, options: Mapping[str, str]) -> Sequence[str]:
        """The letter."""
        if self.dialect == "qwen":
            return one(first_letter(text, "ABCD", VLMEVALKIT_PHRASES) or vlmevalkit_letter(text, options))
        return one(find_letter(text, "ABCD"))
