"""Evaluation on videos from end to end: tiny Qwen models, processors with a video part, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers_checkpoints import image_processor, save_tiny
from tests.helpers_clips import frame_folder
from tests.helpers_stub import Stub
from tests.helpers_tasks import FIXTURES
from tests.test_eval_score import vtc_eval
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.eval import models
from vtc.eval.clip_inputs import check_clips
from vtc.eval.data.clips import read_clip
from vtc.eval.models import Loaded
from vtc.eval.runner import evaluate
from vtc.eval.running.eval_settings import EvalSettings
from vtc.patches._clips import joined_frames

PLACE = {"": str(FIXTURES / "videomme.jsonl")}
CLIPS = FIXTURES / "videos"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder that loads as a tiny Qwen2.5-VL."""
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


def rows(output, run: str, task: str = "videomme") -> list[dict]:
    """The rows of a sample log, after its header."""
    lines = (output / "samples" / f"{run}.{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def options(model, output, **changes) -> EvalSettings:
    """A small grid on the invented rows of Video-MME."""
    values = dict(model=str(model), strategies=("none", "divprune"), keeps=("0.25",), tasks=("videomme",))
    return EvalSettings(output, **{**values, "dataset_path": PLACE, "max_new_tokens": 3, **changes})


def test_tokens_of_clips(qwen, tmp_path):
    """5 frames are 3 pairs of 12 tokens, 4 are 2 pairs; a quarter is kept; rows of a padded batch are those of one."""
    assert evaluate(options(qwen, tmp_path / "one"), quiet=True) == 0
    assert evaluate(options(qwen, tmp_path / "two", batch_size=4), quiet=True) == 0
    for run, after in (("none", [36, 36, 24, 24]), ("divprune-keep0.25", [9, 9, 6, 6])):
        found = rows(tmp_path / "one", run)
        assert [row["visual_before"] for row in found] == [36, 36, 24, 24]
        assert [row["visual_after"] for row in found] == after
        assert [row["images"] for row in found] == [1] * 4
        assert {row["error"] for row in found} == {None}
        assert found == rows(tmp_path / "two", run)
    pruned = rows(tmp_path / "one", "divprune-keep0.25")
    assert all(row["prefill_flops"][1] < row["prefill_flops"][0] for row in pruned)
    result = json.loads((tmp_path / "one" / "runs" / "none.json").read_text())["tasks"]["videomme"]
    assert (result["data"]["frames"], result["data"]["sampling"], result["n_errors"]) == (32, "uniform", 0)


def test_frames_are_in_the_run_key(qwen, tmp_path):
    """Fewer frames are another run, which does not continue the first."""
    assert evaluate(options(qwen, tmp_path, strategies=("none",), frames=2), quiet=True) == 0
    assert [row["visual_before"] for row in rows(tmp_path, "none")] == [12] * 4
    with pytest.raises(ConfigError, match="frames"):
        evaluate(options(qwen, tmp_path, strategies=("none",), frames=4), quiet=True)


def test_the_clip_stands_where_the_prompt_says(qwen):
    """Before the text, or in place of None; one placeholder for each token; times for the positions."""
    loaded = models.load(str(qwen), {}, "cpu")
    clip = read_clip(CLIPS / "clip_a", 32, 4.0)
    inputs = loaded.encode(["Why?", ["a", None, "b"]], [[], []], clips=[[clip], [clip]])
    texts = loaded.processor.tokenizer.batch_decode(inputs["input_ids"])
    start, places, end = "<|vision_start|>", "<|video_pad|>" * 36, "<|vision_end|>"
    assert f"USER: {start}{places}{end}Why?" in texts[0]
    assert f"USER: a{start}{places}{end}b" in texts[1]
    assert loaded.visual_tokens(inputs) == [36, 36]
    kinds = inputs.get("mm_token_type_ids")  # the oldest transformers takes none
    assert kinds is None or (kinds == 2).sum(1).tolist() == [36, 36]
    assert inputs["video_grid_thw"].tolist() == [[3, 6, 8]] * 2
    assert inputs["second_per_grid_ts"].tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="the prompts have pictures and clips"):
        loaded.encode(["?"], [[Image.new("RGB", (8, 8))]], clips=[[clip]])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_frames_side_by_side(steps):
    """Each place of a patch [3, steps, p, p] holds the patch of its own frame; the last frame is repeated."""
    images = image_processor("Qwen2VLImageProcessor")(
        patch_size=4, merge_size=2, temporal_patch_size=steps, min_pixels=64, max_pixels=256 * 64
    )
    frames = [Image.effect_noise((32, 24), 90).convert("RGB") for _ in range(5)]
    pixels, grid = joined_frames(images, frames, steps)
    assert grid == (-(-5 // steps), 6, 8)
    assert pixels.shape == (grid[0] * 48, 3 * steps * 16)
    for i in range(grid[0] * steps):
        alone = images(images=[frames[min(i, 4)]], return_tensors="pt")["pixel_values"].view(48, 3, steps, 16)[:, :, 0]
        mine = pixels.view(grid[0], 48, 3, steps, 16)[i // steps, :, :, i % steps]
        assert torch.equal(mine, alone)


class VideoProcessor:
    """A stub of a processor with a video part: notes what it is given, and returns inputs of a fixed form."""

    video_token = "<video>"
    video_processor = object()

    def __init__(self, template: str):
        self.template, self.given = template, {}
        self.tokenizer = SimpleNamespace(bos_token=None)

    def apply_chat_template(self, turns: list[dict], add_generation_prompt: bool) -> str:
        """A word for each part."""
        parts = turns[-1]["content"]
        return "".join(self.template if part["type"] == "video" else part["text"] for part in parts)

    def __call__(self, **given) -> dict:
        self.given = given
        ids = torch.ones(len(given["text"]), 3, dtype=torch.long)
        return {"input_ids": ids, "pixel_values_videos": torch.zeros(1, 2), "seconds": torch.ones(1), "names": ["x"]}


def with_video_part(template: str = "<video>") -> Loaded:
    """A model in half precision with that processor."""
    model = torch.nn.Linear(1, 1).half()
    model.device, model.dtype = torch.device("cpu"), torch.float16
    return Loaded(model, VideoProcessor(template), None, None, {}, {})


def test_a_processor_with_a_video_part():
    """It gets the frames as arrays, already sampled, with their numbers and the video's rate; pixels get the dtype."""
    loaded = with_video_part()
    check_clips(loaded)
    clips = [read_clip(CLIPS / name, 3, 2.0) for name in ("clip_a", "clip_b")]
    inputs = loaded.encode(["Why?", "Who?"], [[], []], clips=[[clip] for clip in clips])
    given = loaded.processor.given
    assert given["text"] == ["<video>Why?", "<video>Who?"]
    assert [video.shape for video in given["videos"]] == [(3, 24, 32, 3)] * 2
    assert np.array_equal(given["videos"][0][1], np.asarray(clips[0].frames[1]))
    assert given["do_sample_frames"] is False
    assert given["video_metadata"][0] == {
        "total_num_frames": 5, "fps": 2.0, "frames_indices": [0, 2, 4], "width": 32, "height": 24, "duration": 2.5,
    }  # fmt: skip
    assert {name: value.dtype for name, value in inputs.items()} == {
        "input_ids": torch.long, "pixel_values_videos": torch.float16, "seconds": torch.float32,
    }  # fmt: skip


def test_a_template_without_a_place_for_clips():
    """It would ask blind."""
    clip = read_clip(CLIPS / "clip_a", 3, 2.0)
    with pytest.raises(
        ConfigError, match="^the chat template has 0 places for 1 clips; possible: a template that takes"
    ):
        with_video_part("").encode(["Why?"], [[]], clips=[[clip]])


@pytest.mark.parametrize("kind, said", [
    ("llava", "llava takes no clips here: its processor has no video part; possible: a model whose processor takes"),
    ("qwen3_vl", "clips of qwen3_vl need torchvision; possible: pip install torchvision"),
])  # fmt: skip
def test_models_without_clips(kind, said, tmp_path):
    """Refused in one line before the first sample."""
    model = save_tiny(kind, tmp_path / kind)
    with pytest.raises(UnsupportedError, match=f"^{said}"):
        evaluate(options(model, tmp_path / "out", strategies=("none",)), quiet=True)
    assert not list((tmp_path / "out" / "samples").iterdir())


def test_a_missing_video_is_an_error_row(qwen, tmp_path):
    """The other questions are answered; the exit code counts the rows without an answer."""
    frame_folder(tmp_path / "videos" / "clip_b", 2)
    settings = options(qwen, tmp_path / "out", strategies=("none",), videos={"videomme": str(tmp_path / "videos")})
    assert evaluate(settings, quiet=True) == 2
    found = rows(tmp_path / "out", "none")
    assert [row["error"] and row["error"].split(";")[0] for row in found] == [
        "ConfigError: no video 'clip_a.mp4' in 'videos'"] * 2 + [None] * 2  # fmt: skip
    assert [row["visual_before"] for row in found] == [None, None, 12, 12]


@pytest.mark.parametrize("arguments, said", [
    (("--tasks", "pope", "--frames", "8"), "--frames has no effect, as no task has videos; possible: --tasks of demo_"),
    (("--tasks", "pope", "--videos", "x"), "--videos has no effect, as no task has videos"),
    (("--tasks", "videomme", "--frames", "0"), "--frames 0 is out of range; possible: a whole number >= 1"),
    (("--tasks", "videomme", "--frames", "many"), "--frames 'many' is out of range"),
    (("--tasks", "videomme", "--videos", "pope=x"), "unknown task in --videos 'pope': possible: videomme"),
    (("--tasks", "videomme", "--videos", " "), "--videos ' ' has an empty path"),
    (("--videos", "x"), "--videos 'x' has data, but --tasks does not say of what"),
    (("--tasks", "videomme", "--strategy", "downsample", "--keep", "0.5"), "downsample cannot shrink the clips of"),
])  # fmt: skip
def test_options_without_effect(tmp_path, capsys, monkeypatch, arguments, said):
    """One line, before the model is loaded."""
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("a model was loaded"))
    strategy = () if "--strategy" in arguments else ("--strategy", "none")
    code, out, err = vtc_eval(capsys, "--model", "demo", *strategy, *arguments, "--output", tmp_path / "o")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_a_suite_and_each_task_its_own(tmp_path):
    """Both options in a suite; a folder for one task."""
    from vtc.eval.running.eval_settings import settings_from
    from vtc.eval.tasks import TASKS

    (tmp_path / "suite.yaml").write_text(
        "{model: demo, strategy: none, tasks: 'videomme,pope', frames: 8, videos: {videomme: here}, output: out}"
    )
    found = settings_from(str(tmp_path / "suite.yaml"), dict.fromkeys(
        ("model", "strategy", "tasks", "frames", "videos", "output")))  # fmt: skip
    task = found.task(TASKS["videomme"])
    assert (task.frames, task.videos, found.task(TASKS["pope"]).dialect) == (8, "here", "llava")


def test_what_a_stub_answers(tmp_path, monkeypatch):
    """All benchmarks on videos in Qwen's dialect: prompts without the mark of a clip."""
    stub = Stub()
    names = ("egoschema", "longvideobench_val", "mlvu_dev", "mvbench", "videomme")
    settings = EvalSettings(tmp_path, tasks=names, dataset_path={"": str(FIXTURES)}, dialect="qwen")
    assert evaluate(settings, loaded=stub, quiet=True) == 0
    assert len(stub.seen) == 2 + 3 + 4 + 4 + 4
    assert not [text for text, _ in stub.seen if "<picture>" in text]
