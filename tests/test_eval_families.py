"""Evaluation of every family with its real processor: batches, counts that follow the picture, what a prompt may be."""

import json

import pytest
from PIL import Image

import vtc
from tests.helpers_checkpoints import save_tiny
from tests.test_eval import log, times
from vtc.core.budget import Budget
from vtc.core.errors import UnsupportedError
from vtc.eval import models
from vtc.eval.runner import evaluate
from vtc.eval.running.downsample import Downsample
from vtc.eval.running.eval_settings import EvalSettings
from vtc.eval.tasks.demo import Demo

SIZES = ((64, 48), (40, 80), (120, 96))  # width, height: 6 x 8, 10 x 5 and 12 x 15 tokens of 8 x 8 pixels
QUICK = ("llava", "llava_next", "qwen2_5_vl", "gemma3")  # of the seconds that each family takes


@pytest.fixture
def qwen(tmp_path, monkeypatch):
    """A folder that loads as a tiny Qwen2-VL, and the demo task with pictures of several shapes."""
    folder = save_tiny("qwen2_vl", tmp_path / "tiny-qwen")
    pictures = [Image.effect_noise(size, 90) for size in SIZES]
    monkeypatch.setattr(Demo, "images", lambda self, doc: [pictures[int(doc["id"][-1]) % 3]])
    monkeypatch.setattr(Demo, "prompt", lambda self, doc: "word" * (3 + int(doc["id"][-1])))
    return folder


def test_counts_follow_the_picture(qwen, tmp_path):
    """Every picture has its own count; pruning and downsampling cut each, and both logs say by how much."""
    strategies = ("none", "hiprune", "downsample")
    options = dict(model=str(qwen), strategies=strategies, keeps=("0.25",), limit=6, max_new_tokens=3)
    assert evaluate(EvalSettings(output=tmp_path / "out", batch_size=3, **options)) == 0
    full = [48, 50, 180] * 2
    rows = {run: log(tmp_path / "out", run) for run in ("none", "hiprune-keep0.25", "downsample-keep0.25")}
    for run in rows.values():
        assert [row["visual_before"] for row in run] == full
        assert all(row["tokens_out"] == 3 for row in run)
        assert len({row["text_in"] for row in run}) == 6, "padding is not counted"
    assert [row["visual_after"] for row in rows["none"]] == full
    assert [row["visual_after"] for row in rows["hiprune-keep0.25"]] == [12, 12, 45] * 2
    for row, n in zip(rows["downsample-keep0.25"], full):
        assert n * 0.25 * 0.75 <= row["visual_after"] <= n * 0.25 + 1
        assert row["prefill_flops"][1] < row["prefill_flops"][0]
    assert all(part["prefill"] > 0 for part in times(tmp_path / "out", "downsample-keep0.25").values())
    result = json.loads((tmp_path / "out" / "runs" / "downsample-keep0.25.json").read_text())
    assert result["method"]["downsample"]["mode"] == "grid"
    evaluate(EvalSettings(output=tmp_path / "single", batch_size=1, **options))
    for run, batched in rows.items():
        assert [row["text"] for row in log(tmp_path / "single", run)] == [row["text"] for row in batched]


def test_a_count_beyond_the_picture(qwen, tmp_path):
    """keep=100 keeps all of the small pictures and 100 of the large one; no run is stopped for it."""
    options = dict(model=str(qwen), strategies=("uniform", "downsample"), keeps=("100",), limit=3, max_new_tokens=2)
    assert evaluate(EvalSettings(output=tmp_path / "out", **options)) == 0
    assert [row["visual_after"] for row in log(tmp_path / "out", "uniform-keep100")] == [48, 50, 100]
    after = [row["visual_after"] for row in log(tmp_path / "out", "downsample-keep100")]
    assert after[:2] == [48, 50]
    assert 75 <= after[2] <= 100


def test_what_a_prompt_may_be(qwen):
    """A system turn, pictures within the text, squares; a prompt with too few places is refused."""
    loaded = models.load(str(qwen), {}, "cpu")
    pictures = [Image.effect_noise((64, 48), 90), Image.effect_noise((40, 80), 90)]

    def shown(*args, **kwargs):
        inputs = loaded.encode(*args, **kwargs)
        return loaded.processor.tokenizer.decode(inputs["input_ids"][0]), loaded.visual_tokens(inputs)

    text, tokens = shown(["Why?"], [pictures], system="Be brief.")
    assert tokens == [98]
    text = text.replace("<|image_pad|>", "")
    assert text.startswith("Be brief.")
    assert "USER: <|vision_start|><|vision_end|><|vision_start|><|vision_end|>Why?" in text
    text, _ = shown([["Of ", None, " and ", None, ": which?"]], [pictures])
    assert "Of <|vision_start|><|vision_end|> and <|vision_start|>" in text.replace("<|image_pad|>", "")
    assert shown(["?"], [pictures[:1]], pad_square=True)[1] == [64]
    with pytest.raises(ValueError, match="1 places for 2 pictures"):
        loaded.encode([["a", None]], [pictures])


def test_downsample_is_refused_for_tiles(tmp_path):
    """No smaller picture of LLaVA-NeXT's is a budget; what is possible is said before anything runs."""
    options = dict(model=str(save_tiny("llava_next", tmp_path / "next")), strategies=("downsample",), limit=1)
    with pytest.raises(UnsupportedError, match="how llava_next cuts pictures; possible: models with one fixed grid"):
        evaluate(EvalSettings(output=tmp_path / "out", keeps=("0.5",), **options))


def test_a_family_says_that_smaller_pictures_give_fewer_tokens(qwen, monkeypatch):
    """`token_side`, in pixels, is all that downsampling asks of it."""
    loaded = models.load(str(qwen), {}, "cpu")
    budget = Budget(0.25)
    assert (loaded.family.token_side(), Downsample(loaded, budget).mode) == (8, "grid")
    monkeypatch.setattr(type(loaded.family), "token_side", lambda self: None)
    with pytest.raises(UnsupportedError, match="of a family whose grid follows the picture"):
        Downsample(loaded, budget)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.full) for kind in vtc.families()]
)
def test_batches_equal_one_by_one(kind, tmp_path, monkeypatch):
    """Every family, with and without pruning: rows of a padded batch are those of single prompts, to the byte."""
    folder = save_tiny(kind, tmp_path / kind)
    pictures = [Image.effect_noise(size, 90) for size in ((64, 48), (40, 80), (96, 90))]
    monkeypatch.setattr(Demo, "images", lambda self, doc: pictures[: 1 + int(doc["id"][-1]) % 3])
    options = dict(model=str(folder), strategies=("none", "hiprune"), keeps=("0.25",), limit=6, max_new_tokens=8)
    for size in (1, 4):
        assert evaluate(EvalSettings(output=tmp_path / str(size), batch_size=size, **options)) == 0
    for run in ("none", "hiprune-keep0.25"):
        alone, batched = (log(tmp_path / size, run) for size in "14")
        assert batched == alone
        assert len({row["text_in"] for row in alone}) > 1, "padded"
        assert [row["images"] for row in alone] == [1, 2, 3] * 2
        kept = [row["visual_after"] / row["visual_before"] for row in alone]
        assert all(share == 1 for share in kept) if run == "none" else all(0.2 < share < 0.3 for share in kept)
