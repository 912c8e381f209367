"""The bundled video benchmark: five kinds of questions about generated clips, one right answer each.

A row:

    {"id": "test-00001", "question": "Which way did the red cross move?", "answer": "up", "type": "direction"}

An answer is right if it equals the reference after stripping, lower-casing and dropping a final full stop. The figure
to compare is `macro`, the mean over the five kinds; one of them (`color`) can be answered from any single frame. Clips
are generated, not read: their number is unlimited, and a number always gives the same clip, of 8 frames. Tune on
`tune`, report on `test`; `train` is what the video demo model's training drew from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vtc.core.errors import ConfigError, shown
from vtc.demo import benchmark
from vtc.demo.video import clip_benchmark
from vtc.demo.video.clip_scenes import FRAMES
from vtc.eval.data.clips import Clip, frame_indices
from vtc.eval.data.docs import Docs
from vtc.eval.tasks import TASKS, Task

ENOUGH_CLIPS = 500  # samples when no limit is given: 100 of each kind
FPS = 2.0  # that the clips are said to have


@TASKS.register("demo_video")
@dataclass(frozen=True)
class DemoVideo(Task):
    """Questions about generated clips; the same prompts in every dialect.

    frames: how many of the 8 frames the model sees, evenly spaced, None for all. videos: must be None, there are none.
    """

    frames: int | None = None
    videos: str | None = None

    name: ClassVar[str] = "demo_video"
    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("test", "tune", "train")
    pictures: ClassVar[tuple[str, ...]] = ()
    takes_clips: ClassVar[bool] = True
    max_new_tokens: ClassVar[int] = 4
    primary: ClassVar[str] = "macro"

    def open(self, split: str | None = None, limit: int | None = None, place: str | None = None) -> Docs:
        """The first samples of a split; raises ConfigError for an unknown split or a place."""
        split = split or self.splits[0]
        if split not in self.splits:
            raise ConfigError(f"split={split!r} is unknown to task 'demo_video'; possible: {', '.join(self.splits)}")
        if place is not None:
            raise ConfigError(f"--dataset-path {place!r} is not for task 'demo_video'; possible: none, it is generated")
        if self.videos is not None:
            raise ConfigError(f"--videos {shown(self.videos)} is not for task 'demo_video'; possible: none")
        rows = [clip_benchmark.clip_row(split, i) for i in range(ENOUGH_CLIPS if limit is None else limit)]
        return Docs(rows, rows, {"id": "generated", "split": split, "frames": self.frames or FRAMES})

    def needs_picture(self, doc: Mapping) -> bool:
        """No: what is shown is a clip."""
        return False

    def clips(self, doc: Mapping) -> list[Clip]:
        """The frames of the clip, drawn anew."""
        every = clip_benchmark.clip_frames(doc["split"], doc["index"])
        indices = frame_indices(len(every), self.frames or len(every))
        return [Clip(tuple(every[i] for i in indices), indices, len(every), FPS)]

    def category(self, doc: Mapping) -> str:
        """color, direction, appear, count or order."""
        return doc["type"]

    def prompt(self, doc: Mapping) -> str:
        """The bare question, as the video demo model was trained without instructions."""
        return doc["question"]

    def score(self, reference: str, text: str) -> dict:
        """Exact match."""
        return {"correct": float(benchmark.is_correct(reference, text))}
