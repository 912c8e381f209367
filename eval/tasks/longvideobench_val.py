"""LongVideoBench, validation set: 1,337 questions that refer to a moment of videos of 8 seconds to an hour.

    {"id": "abc_0", "video_id": "abc", "video_path": "abc.mp4", "subtitle_path": "abc_en.json", "duration": 12.2,
     "duration_group": 15, "question_category": "S2E", "topic_category": "...", "level": "L1-Perception",
     "starting_timestamp_for_subtitles": 0, "question": "Who opens the door?", "option0": "A girl",
     "option1": "A man", "option2": "A dog", "option3": "N/A", "option4": "N/A", "correct_choice": 1}

Options are read from `candidates` too, the form of the authors' lvb_val.json. Without subtitles, as in lmms-eval's
longvideobench_val_v. The columns are those that lmms-eval and VLMEvalKit read, not checked against the hub.

Prompt: the question, the options and LLaVA's sentence, in all dialects; only llava and lmms end it with a newline.
Scoring: the first of A to E anywhere once phrases such as `The answer is` are deleted, by lmms-eval's list of these
(llava, lmms), or by VLMEvalKit's, else its letter without a judge (qwen). Where lmms-eval draws a letter, the answer is
wrong here. Figures by length of the video, in seconds at most.

Paper: https://arxiv.org/abs/2407.15754. Scoring: https://github.com/EvolvingLMMs-Lab/lmms-eval 0.7.3,
tasks/longvideobench/utils.py; https://github.com/open-compass/VLMEvalKit, vlmeval/dataset/longvideobench.py.
"""

from collections.abc import Mapping, Sequence

from vtc.eval.data.docs import Source
from vtc.eval.metrics.choice import vlmevalkit_letter
from vtc.eval.metrics.video import LMMS_PHRASES, VLMEVALKIT_PHRASES, first_letter
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._prompts import LETTER, lettered
from vtc.eval.tasks._rows import first_id, known, letter_of, name_of, options_of, plain, text_of
from vtc.eval.tasks._video import VideoTask, one

NONE = "N/A"


@TASKS.register("longvideobench_val")
class LongVideoBenchVal(VideoTask):
    """Questions about a moment of a long video."""

    name = "longvideobench_val"
    version = 1
    source = Source(("longvideobench/LongVideoBench",))
    splits = ("validation",)
    columns = ("question", "correct_choice", ("option0", "candidates"), ("video_path", "video_id"))
    max_new_tokens = 32

    def prompt(self, doc: Mapping) -> str:
        """The question, the options and the instruction."""
        prompt = f"{text_of(doc, 'question')}\n{lettered(self.options(doc))}{LETTER}"
        return prompt if self.dialect == "qwen" else prompt + "\n"

    def video_names(self, doc: Mapping) -> list[str]:
        """The path, else the id."""
        name = name_of(doc, "video_path")
        return [name] if name else [plain(doc["video_id"], "video_id") + ".mp4"]

    def options(self, doc: Mapping) -> dict[str, str]:
        """Two to five options."""
        if known(doc.get("candidates")) is not None:
            return options_of(doc["candidates"], "candidates")
        cells = (doc.get(f"option{i}") for i in range(5))
        return options_of([cell for cell in cells if known(cell) is not None and cell != NONE], "option0 to option4")

    def answer(self, doc: Mapping, options: Mapping[str, str]) -> str:
        """The letter of the place."""
        return letter_of(doc["correct_choice"], options, "correct_choice")

    def ident(self, doc: Mapping) -> str:
        """The question's id, else the row's number."""
        return first_id(doc, "id")

    def category(self, doc: Mapping) -> str:
        """The group of lengths: 15, 60, 600 or 3600."""
        return name_of(doc, "duration_group") or self.name

    def read(self, text: str, options: Mapping[str, str]) -> Sequence[str]:
        """The letter."""
        if self.dialect == "qwen":
            return one(first_letter(text, "ABCDE", VLMEVALKIT_PHRASES) or vlmevalkit_letter(text, options))
        return one(first_letter(text, "ABCDE", LMMS_PHRASES))
