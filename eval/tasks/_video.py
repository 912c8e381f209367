"""The base of multiple-choice benchmarks about videos."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.clips import Clip, find_video, listing, read_clip
from vtc.eval.data.docs import FOLDER, Docs, local
from vtc.eval.tasks import Task

LETTERED = re.compile(r"\s*\(?([A-Z])[.):]\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class VideoTask(Task):
    """Questions with options, each about one video. Videos are no part of the rows: they lie in a local folder.

    frames: how many of a video the model sees, None for the task's `default_frames`; which ones, see
    `vtc.eval.data.clips`. videos: the folder of the videos, None for that of a local data file. Both belong to the
    record of the data, and so to run keys and results. A question's group is its video.

    default_frames: see `frames`. folder_fps: the frames per second of a video that is a folder of frames. A subclass
    says which files may be a row's video (`video_names`), what its options are (`options`), and which letters count as
    an answer (`read`); `answer` may read the right one.
    """

    frames: int | None = None
    videos: str | None = None

    takes_clips: ClassVar[bool] = True
    pictures: ClassVar[tuple[str, ...]] = ()
    default_frames: ClassVar[int] = 32
    folder_fps: ClassVar[float] = 2.0
    max_new_tokens: ClassVar[int] = 16

    @abstractmethod
    def video_names(self, doc: Mapping) -> list[str]:
        """The names that the row's video may have in the folder of videos, the likeliest first."""

    @abstractmethod
    def options(self, doc: Mapping) -> dict[str, str]:
        """The options' texts by letter, without letters of their own."""

    @abstractmethod
    def answer(self, doc: Mapping, options: Mapping[str, str]) -> str:
        """The letter of the right option; raises ConfigError for an answer that is none."""

    @abstractmethod
    def read(self, text: str, options: Mapping[str, str]) -> Sequence[str]:
        """The letters that the benchmark's rule accepts as the answer in a text, the best first; empty for none."""

    def load(self, split: str, place: str | None) -> Docs:
        """All rows of a split, with the folder of the videos; raises ConfigError in one line."""
        return self.placed(super().load(split, place), place)

    def placed(self, docs: Docs, place: str | None) -> Docs:
        """Docs whose folder is that of the videos, and whose record says which videos there are."""
        folder = Path(self.videos).expanduser() if self.videos is not None else docs.folder
        if folder is None and place is not None and (data := local(place)) is not None:
            folder = data if data.is_dir() else data.parent
        if folder is not None and not folder.is_dir():
            raise ConfigError(
                f"--videos {shown(str(folder))} is no folder; possible: the folder of {self.name}'s videos"
            )
        record = docs.record | {"frames": self.frames or self.default_frames, "sampling": "uniform"}
        if folder is not None:
            record["videos"] = listing(self._found(docs.text(i), folder) for i in range(len(docs)))
        return Docs(docs.rows, docs.texts, record, docs.chosen, folder)

    def _found(self, doc: Mapping, folder: Path) -> tuple[str, Path | None]:
        try:
            names = self.video_names(doc)
            return names[0], find_video(folder, names)
        except (ConfigError, KeyError, OSError, ValueError):  # said when the row is asked
            return "", None

    def check(self, docs: Docs) -> None:
        """As for any task, and that there is a folder of videos."""
        super().check(docs)
        if docs.folder is None:
            raise ConfigError(f"the videos of task {self.name!r} are no part of its data; possible: --videos FOLDER")

    def needs_picture(self, doc: Mapping) -> bool:
        """No: what is shown is a clip."""
        return False

    def clips(self, doc: Mapping) -> list[Clip]:
        """The frames of the row's video; raises ConfigError for a video that is missing or cannot be read."""
        names = self.video_names(doc)
        if doc.get(FOLDER) is None:
            raise ConfigError(f"no folder of videos for {shown(names[0])}; possible: --videos FOLDER")
        try:
            path = find_video(doc[FOLDER], names)
        except (OSError, ValueError):  # a name that no file can have
            path = None
        if path is None:
            raise ConfigError(
                f"no video {shown(names[0])} in {shown(doc[FOLDER].name)}; possible: a file, or a folder of frames"
            )
        return [read_clip(path, self.frames or self.default_frames, self.folder_fps)]

    def group(self, doc: Mapping) -> str:
        """The video, about which there may be several questions."""
        return self.video_names(doc)[0]

    def reference(self, doc: Mapping) -> dict:
        """`answer`, a letter, and `options` by letter; raises ConfigError for an answer that is none of them."""
        options = self.options(doc)
        return {"answer": self.answer(doc, options), "options": options}

    def score(self, reference: Mapping, text: str) -> dict:
        """Whether the right letter counts as the answer."""
        letters = self.read(text, reference["options"])
        return {"correct": float(reference["answer"] in letters), "parsed": next(iter(letters), None)}


def bare(options: Mapping[str, str]) -> dict[str, str]:
    """Options without letters of their own, as in `A. text` or `(A) text`, if each begins with its letter."""
    matches = {letter: LETTERED.fullmatch(text) for letter, text in options.items()}
    if not all(match is not None and match[1] == letter for letter, match in matches.items()):
        return dict(options)
    return {letter: match[2].strip() for letter, match in matches.items()}


def bracketed(options: Mapping[str, str]) -> str:
    """`(A) one`, `(B) two`, ..., one per line."""
    return "\n".join(f"({letter}) {text}" for letter, text in options.items())


def one(letter: str | None) -> list[str]:
    """A list of the letter, empty for None or an empty text."""
    return [letter] if letter else []
