"""Clips: evenly spaced frames of a video, which is a file or a folder of pictures; always the same ones.

Of `total` frames, frame i of N is number floor(i * (total - 1) / (N - 1)), counted from 0, so that the first and the
last are among them (the first alone if N is 1). This is numpy's `linspace(0, total - 1, N, dtype=int)`, by which
lmms-eval's models sample, without its rounding errors. A video with fewer than N frames gives all of them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.pictures import picture, rgb

FILES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".gif", ".MP4")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SUBFOLDERS = ("", "videos", "video", "data")  # of the folder of videos
INSTEAD = "a folder of its frames as pictures"


@dataclass(frozen=True)
class Clip:
    """Frames of a video. frames: PIL pictures in RGB, all of one size. indices: their numbers among the `total` frames
    of the video, which shows `fps` of them a second."""

    frames: tuple[Image.Image, ...]
    indices: tuple[int, ...]
    total: int
    fps: float

    @property
    def sampled_fps(self) -> float:
        """Frames of the clip per second of the video."""
        return len(self.indices) / self.total * self.fps


def frame_indices(total: int, wanted: int) -> tuple[int, ...]:
    """The numbers, from 0, of at most `wanted` of `total` frames; see the top of the file."""
    if total <= wanted:
        return tuple(range(total))
    return tuple(i * (total - 1) // max(wanted - 1, 1) for i in range(wanted))


def find_video(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these names that is a file or a folder in `folder`, in one of its `SUBFOLDERS`; None if none is.

    A name also stands for a file with another suffix and for a folder without one.
    """
    for name in names:
        stem = str(Path(name).with_suffix("")) if Path(name).suffix in FILES else name
        for place in (folder / sub for sub in SUBFOLDERS):
            for one in (name, *(stem + suffix for suffix in FILES), stem):
                if (place / one).exists():
                    return place / one
    return None


def read_clip(path: Path, wanted: int, folder_fps: float) -> Clip:
    """At most `wanted` frames of a video file, or of a folder with its frames as pictures, sorted by name.

    folder_fps: the frames per second of a folder, and of a file that does not say. Raises ConfigError in one line for
    what cannot be read, and where the decoder of files is not installed.
    """
    clip = _of_folder(path, wanted, folder_fps) if path.is_dir() else _of_file(path, wanted, folder_fps)
    sizes = {frame.size for frame in clip.frames}
    if len(sizes) != 1:
        problem = f"has frames of {len(sizes)} sizes" if sizes else "has no frames"
        raise ConfigError(f"video {shown(path.name)} {problem}; possible: one size for all")
    return clip


def _of_folder(path: Path, wanted: int, fps: float) -> Clip:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES and file.name[0] != ".")
    if not files:
        raise ConfigError(f"folder {shown(path.name)} has no frames; possible: pictures ({', '.join(PICTURES)})")
    indices = frame_indices(len(files), wanted)
    return Clip(tuple(picture(files[i]) for i in indices), indices, len(files), fps)


def _of_file(path: Path, wanted: int, default_fps: float) -> Clip:
    try:
        import av
    except ImportError:
        raise ConfigError(
            f"video {shown(path.name)} needs the decoder av; possible: pip install vtc-vlm[video], or {INSTEAD}"
        ) from None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            total, fps = stream.frames, float(stream.average_rate or default_fps)
        frames, decoded = _decode(av, path, frame_indices(total, wanted))
        if not total or len(frames) < min(total, wanted):  # the header does not say how many there are, or is wrong
            total = decoded
            frames, _ = _decode(av, path, frame_indices(total, wanted))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:80] or type(error).__name__
        raise ConfigError(f"video {shown(path.name)} cannot be read, {why}; possible: {INSTEAD}") from None
    return Clip(tuple(frames), frame_indices(total, wanted), total, fps)


def _decode(av, path: Path, indices: Sequence[int]) -> tuple[list[Image.Image], int]:
    """The frames with these numbers, as far as there are any, and how many were decoded: all if one is missing, or if
    none is asked for."""
    wanted, frames, count = set(indices), [], 0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            if count in wanted:
                frames.append(rgb(frame.to_image()))
            count += 1
            if wanted and len(frames) == len(wanted):
                break
    return frames, count


def listing(videos: Iterable[tuple[str, Path | None]]) -> str:
    """16 hex digits of a sha256 over the videos of a data set by name: the size of a file, the number and sizes of the
    pictures of a folder; None for one that is missing."""
    total = hashlib.sha256()
    for name, path in sorted(dict(videos).items()):
        files = [] if path is None else sorted(path.iterdir()) if path.is_dir() else [path]
        sizes = [file.stat().st_size for file in files if file.is_file()]
        total.update(f"{name}:{len(sizes)}:{sum(sizes)}\n".encode("utf-8", "backslashreplace"))
    return total.hexdigest()[:16]
