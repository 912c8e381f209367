"""Clips: which frames of a video are taken, where videos are found, and what cannot be read."""

import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers_clips import frame_folder, numbers, video_file
from vtc.core.errors import ConfigError
from vtc.eval.data.clips import Clip, find_video, frame_indices, listing, read_clip


def test_frames_are_evenly_spaced():
    """floor(i * (total - 1) / (N - 1)): ascending, different, the first and the last among them."""
    assert frame_indices(25, 5) == (0, 6, 12, 18, 24)
    assert frame_indices(10, 4) == (0, 3, 6, 9)
    assert frame_indices(9, 4) == (0, 2, 5, 8)
    assert frame_indices(7, 1) == (0,)
    for total in (8, 33, 100, 901):
        for wanted in (2, 3, 8, 32):
            found = frame_indices(total, wanted)
            assert len(found) == min(total, wanted)
            assert (found[0], found[-1]) == (0, total - 1)
            steps = np.diff(found)
            assert steps.min() >= 1
            assert steps.max() - steps.min() <= 1


def test_short_videos_give_all():
    """No frame is taken twice."""
    assert frame_indices(3, 8) == (0, 1, 2)
    assert frame_indices(8, 8) == tuple(range(8))


def test_a_folder_of_frames(tmp_path):
    """Pictures sorted by name; other files are no frames; the rate is the task's."""
    folder = frame_folder(tmp_path / "clip", 9)
    (folder / "notes.txt").write_text("x")
    clip = read_clip(folder, 4, 3.0)
    assert (clip.indices, clip.total, clip.fps) == ((0, 2, 5, 8), 9, 3.0)
    assert numbers(clip.frames) == [0, 2, 5, 8]
    assert clip.sampled_fps == pytest.approx(4 / 3)
    assert read_clip(folder, 32, 2.0).sampled_fps == 2.0


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_file(tmp_path, suffix):
    """The same frames as of the folder, with the file's own rate; .mkv does not say how many frames it has."""
    pytest.importorskip("av", reason="the decoder of video files, the extra `video`, is not installed")
    clip = read_clip(video_file(tmp_path / f"clip{suffix}", 9), 4, 2.0)
    assert (clip.indices, clip.total, clip.fps) == ((0, 2, 5, 8), 9, 10.0)
    assert numbers(clip.frames) == [0, 2, 5, 8]
    assert numbers(read_clip(tmp_path / f"clip{suffix}", 32, 2.0).frames) == list(range(9))


def test_a_file_that_is_none(tmp_path):
    """One line for a damaged file."""
    pytest.importorskip("av", reason="the decoder of video files, the extra `video`, is not installed")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(ConfigError, match="^video 'clip.mp4' cannot be read, .*; possible: a folder of its frames"):
        read_clip(tmp_path / "clip.mp4", 4, 2.0)


def test_without_the_decoder(tmp_path, monkeypatch):
    """It is imported for files alone, and named where it is missing."""
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(read_clip(frame_folder(tmp_path / "clip", 3), 4, 2.0).frames) == 3
    (tmp_path / "clip.mp4").write_bytes(b"any")
    with pytest.raises(
        ConfigError, match=r"^video 'clip.mp4' needs the decoder av; possible: pip install vtc-vlm\[vid"
    ):
        read_clip(tmp_path / "clip.mp4", 4, 2.0)


class FakeStream:
    """A stream whose header claims a number of frames."""

    average_rate = 5

    def __init__(self, claimed: int):
        self.frames = claimed


class FakeDecoder:
    """A decoder of a video with seven frames."""

    def __init__(self, claimed: int):
        self.claimed = claimed

    def open(self, path: str) -> "FakeDecoder":
        """The only video."""
        return self

    def __enter__(self) -> "FakeDecoder":
        self.streams = type("Streams", (), {"video": [FakeStream(self.claimed)]})
        return self

    def __exit__(self, *_) -> None:
        pass

    def decode(self, video: int):
        """Frames as the decoder gives them."""
        for i in range(7):
            yield type("Frame", (), {"to_image": lambda _, i=i: Image.new("RGB", (4, 4), (10 * i, 0, 0))})()


@pytest.mark.parametrize("claimed", [7, 0, 40])
def test_what_the_header_claims(tmp_path, monkeypatch, claimed):
    """Where it does not say how many frames there are, or more than there are, they are counted."""
    monkeypatch.setitem(sys.modules, "av", FakeDecoder(claimed))
    (tmp_path / "clip.mp4").write_bytes(b"any")
    clip = read_clip(tmp_path / "clip.mp4", 3, 2.0)
    assert (clip.indices, clip.total, numbers(clip.frames)) == ((0, 3, 6), 7, [0, 3, 6])


def test_folders_that_are_no_video(tmp_path):
    """No frame, frames of several sizes, a frame that is no picture."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="^folder 'empty' has no frames; possible: pictures"):
        read_clip(tmp_path / "empty", 4, 2.0)
    folder = frame_folder(tmp_path / "mixed", 2)
    Image.new("RGB", (8, 8)).save(folder / "9.png")
    with pytest.raises(ConfigError, match="^video 'mixed' has frames of 2 sizes; possible: one size for all"):
        read_clip(folder, 4, 2.0)
    (folder / "000.png").write_bytes(b"no")
    with pytest.raises(ConfigError, match="no picture that Pillow can read"):
        read_clip(folder, 4, 2.0)


def test_where_videos_are_found(tmp_path):
    """By name, also below `videos` and the like, with another suffix, or as a folder of frames."""
    for place in ("a.mp4", "videos/b.webm", "data/c/000.png", "star/x/d.mp4", "e.with.points"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"x")
    found = {
        name: find_video(tmp_path, names)
        for name, names in {
            "a": ["a.mp4"], "b": ["b.mp4"], "c": ["c.mp4"], "d": ["d.mp4", "star/x/d.mp4"], "e": ["e.with.points"],
            "f": ["f.mp4", "../nothing"],
        }.items()
    }  # fmt: skip
    assert {name: None if path is None else str(path.relative_to(tmp_path)) for name, path in found.items()} == {
        "a": "a.mp4", "b": "videos/b.webm", "c": "data/c", "d": "star/x/d.mp4", "e": "e.with.points", "f": None,
    }  # fmt: skip


def test_a_change_of_the_videos_is_seen(tmp_path):
    """By size, or by the number of frames; a video that is missing counts too."""
    file, folder = tmp_path / "a.mp4", frame_folder(tmp_path / "b", 2)
    file.write_bytes(b"123")

    def state() -> str:
        return listing((name, find_video(tmp_path, [name])) for name in ("a.mp4", "b", "c"))

    states = [state()]
    assert state() == states[0]
    file.write_bytes(b"1234")
    states.append(state())
    Image.new("RGB", (4, 4)).save(folder / "9.png")
    states.append(state())
    (tmp_path / "c").write_bytes(b"")
    assert len({*states, state()}) == 4


def test_clip_is_what_it_says():
    """A clip of every second frame has half the rate."""
    frame = Image.new("RGB", (2, 2))
    assert Clip((frame,) * 3, (0, 2, 4), 6, 10.0).sampled_fps == 5.0
