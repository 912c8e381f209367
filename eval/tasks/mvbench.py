"""MVBench: 20 kinds of multiple-choice questions about short videos, 200 of each; 4,000 questions.

    {"video": "ABC_0.0_9.5.mp4", "question": "What happened after the person took the cup?",
     "candidates": ["Ate the bread.", "Opened the door.", "Sat down."], "answer": "Opened the door."}

On the hub each kind is a config, here in the revision `video`, whose clips are cut to what is asked about, so that
columns with a start and an end are not read. A local copy is a folder with `json/action_sequence.json` and so on, as
many as there are, or any data with the kind in a column `task_type`. A video may lie below the path of its source,
such as `star/Charades_segment`. Frames in a folder are three per second, as in TVQA. The columns are those that
lmms-eval and VLMEvalKit read, not checked against the hub. 16 frames as in the paper; VLMEvalKit takes 8.

Prompt: lmms-eval's (llava, lmms); VLMEvalKit's, with the clip between the options and the last sentence (qwen).
Scoring: the rules of `vtc.eval.metrics.video` for lmms-eval (llava, lmms) and VLMEvalKit (qwen). lmms-eval leaves empty
answers out of the count; here they are wrong. `macro` is the mean over the kinds, as in the paper.

Paper: https://arxiv.org/abs/2311.17005. Scoring: https://github.com/EvolvingLMMs-Lab/lmms-eval 0.7.3,
tasks/mvbench/utils.py; https://github.com/open-compass/VLMEvalKit, vlmeval/dataset/MVBench.py.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from vtc.eval.data.docs import Docs, Source, local, open_source
from vtc.eval.metrics.video import mvbench_lmms, mvbench_vlmevalkit
from vtc.eval.tasks import PICTURE, TASKS
from vtc.eval.tasks._rows import letter_of_text, name_of, options_of, plain, text_of
from vtc.eval.tasks._video import VideoTask, bracketed, one

CLEVRER, PERCEPTION, STAR = "clevrer/video_validation", "perception/videos", "star/Charades_segment"
KINDS = {  # the kind of question, and where its videos are in the archive of the revision `video`
    "action_sequence": STAR, "action_prediction": STAR, "action_antonym": "ssv2_video_mp4",
    "fine_grained_action": "Moments_in_Time_Raw/videos", "unexpected_action": "FunQA_test/test",
    "object_existence": CLEVRER, "object_interaction": STAR, "object_shuffle": PERCEPTION,
    "moving_direction": CLEVRER, "action_localization": "sta/sta_video_segment", "scene_transition": "scene_qa/video",
    "action_count": PERCEPTION, "moving_count": CLEVRER, "moving_attribute": CLEVRER, "state_change": PERCEPTION,
    "fine_grained_pose": "nturgbd_convert", "character_order": PERCEPTION, "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/video_fps3_hq_segment", "counterfactual_inference": CLEVRER,
}  # fmt: skip
HEAD = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
ONLY = "Only give the best option."


@TASKS.register("mvbench")
class MvBench(VideoTask):
    """Twenty kinds of questions that one frame does not answer."""

    name = "mvbench"
    version = 1
    source = Source(("OpenGVLab/MVBench@video",))
    splits = ("train",)
    columns = ("video", "question", "candidates", "answer")
    inline = True
    primary = "macro"
    default_frames = 16
    folder_fps = 3.0

    def load(self, split: str, place: str | None) -> Docs:
        """The rows of all kinds in the order of `KINDS`, from the hub or from a folder; else of any local data."""
        folder = None if place is None else local(place)
        if folder is None:
            parts = {kind: self._kind(kind, split, place) for kind in KINDS}
        else:
            files = {kind: folder / "json" / f"{kind}.json" for kind in KINDS}
            parts = {kind: self._kind(kind, split, str(file)) for kind, file in files.items() if file.is_file()}
        return self.placed(_joined(parts), place) if parts else super().load(split, place)

    def _kind(self, kind: str, split: str, place: str | None) -> Docs:
        return open_source(self.name, Source(self.source.ids, kind), split, self.pictures, place)

    def prompt(self, doc: Mapping) -> str:
        """The question and the options."""
        question, options = text_of(doc, "question"), bracketed(self.options(doc))
        if self.dialect == "qwen":
            return f"{HEAD}Question: {question}\nOptions:\n{options}{PICTURE}\n{ONLY}Best option:("
        return f"Question:{question}\nOption:\n{options}\n{ONLY}\n"

    def video_names(self, doc: Mapping) -> list[str]:
        """The file, also below the path of its source."""
        video, source = plain(doc["video"], "video"), KINDS.get(self.category(doc))
        return [video, *(f"{path}/{video}" for path in (source, f"data0613/{source}") if source)]

    def options(self, doc: Mapping) -> dict[str, str]:
        """Two to five options."""
        return options_of(doc["candidates"], "candidates")

    def answer(self, doc: Mapping, options: Mapping[str, str]) -> str:
        """The letter of the text."""
        return letter_of_text(doc["answer"], options)

    def ident(self, doc: Mapping) -> str:
        """The kind and the row's number in it, else the row's number."""
        return name_of(doc, "index") or super().ident(doc)

    def category(self, doc: Mapping) -> str:
        """The kind of question, in lower case with underscores."""
        return (name_of(doc, "task_type") or self.name).lower().replace("-", "_").replace(" ", "_")

    def read(self, text: str, options: Mapping[str, str]) -> Sequence[str]:
        """The letter."""
        letter = mvbench_vlmevalkit(text, options) if self.dialect == "qwen" else mvbench_lmms(text)
        return one(letter if letter in options else None)


class _Rows(Sequence[dict]):
    """The rows of several docs, each with its kind and its number."""

    def __init__(self, parts: Mapping[str, Docs]):
        self.places = [(kind, docs, i) for kind, docs in parts.items() for i in range(len(docs))]
        columns = (name for docs in parts.values() for name in docs.columns)
        self.column_names = [*dict.fromkeys(columns), "task_type", "index"]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> dict:
        kind, docs, number = self.places[i]
        return {**docs.rows[number], "task_type": kind, "index": f"{kind}-{number}"}

    def __iter__(self) -> Iterator[dict]:
        return (self[i] for i in range(len(self)))


def _joined(parts: Mapping[str, Docs]) -> Docs:
    """The docs of all kinds as one, with one revision of all."""
    first, rows = next(iter(parts.values())), _Rows(parts)
    revisions = {docs.record["revision"] for docs in parts.values()}
    revision = revisions.pop() if len(revisions) == 1 else _digest(parts)
    record = first.record | {"config": ", ".join(parts), "revision": revision}
    return Docs(rows, rows, record, folder=None if first.folder is None else first.folder.parent)


def _digest(parts: Mapping[str, Docs]) -> str:
    text = "\n".join(f"{kind}:{docs.record['revision']}" for kind, docs in parts.items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
