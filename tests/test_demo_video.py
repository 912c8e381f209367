"""The bundled video demo model and its benchmark: the same clips everywhere, right answers from several frames."""

import hashlib
import re

import numpy as np
import pytest
import torch

from vtc.demo.scenes import SPLITS
from vtc.demo.video import VIDEO_MODEL_DIR, clip_benchmark
from vtc.demo.video.clip_benchmark import clip_frames, clip_row
from vtc.demo.video.clip_features import TOKENS, make_clips
from vtc.demo.video.clip_questions import CLIP_ANSWERS, CLIP_TYPES, appearing, clip_candidates, disappearing
from vtc.demo.video.clip_scenes import APPEARED, FRAMES, GONE, cell_labels, clip_scene, draw_frames
from vtc.demo.video.teach_clips import backwards, choose_cells
from vtc.eval import models
from vtc.eval.data.clips import Clip
from vtc.eval.tasks.demo_video import DemoVideo

SAMPLES = 20


@pytest.fixture(scope="module")
def loaded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return models.load("demo-video", {}, "cpu")


def rightly(loaded, rows: list[dict], shown=lambda frames: frames) -> dict[str, float]:
    """Accuracy by type of stock generate() on samples whose frames went through `shown`."""
    found: dict[str, list[float]] = {}
    task = DemoVideo()
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        clips = [
            [Clip(tuple(shown(clip_frames("test", row["index"]))), tuple(range(FRAMES)), FRAMES, 2.0)] for row in part
        ]
        inputs = loaded.encode([row["question"] for row in part], [[]] * len(part), clips=clips)
        answers = loaded.processor.tokenizer.batch_decode(loaded.answer(inputs, 4), skip_special_tokens=True)
        for row, text in zip(part, answers):
            found.setdefault(row["type"], []).append(task.score(row["answer"], text)["correct"])
    return {kind: float(np.mean(right)) for kind, right in found.items()}


def test_fingerprint_of_the_clips():
    assert clip_benchmark.clip_fingerprint() == clip_benchmark.CLIP_FINGERPRINT


def test_clips_are_disjoint_and_deterministic():
    drawn = {draw_frames(clip_scene(split, i)).tobytes() for split in SPLITS for i in range(5)}
    assert len(drawn) == 15
    again = draw_frames(clip_scene("tune", 3))
    assert again.tobytes() in drawn
    assert (again.shape, again.dtype) == ((FRAMES, 112, 112, 3), np.uint8)


@pytest.mark.parametrize("bad", [{"split": "validation"}, {"limit": -1}])
def test_clip_samples_refuses(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        clip_benchmark.clip_samples(**bad)


def test_prefixes_are_balanced():
    """Types alternate; no type is answered by always saying the same; answers are those that the type has."""
    rows = [clip_row("test", i) for i in range(120)]
    assert [row["type"] for row in rows] == list(CLIP_TYPES) * 24
    assert all(row["answer"] in CLIP_ANSWERS[row["type"]] for row in rows)
    assert max(clip_benchmark.clip_majority("test", 500).values()) < 0.35


def test_questions_about_clips_have_one_answer():
    """Also in the clip shown backwards, which is another clip with its own answers."""
    for index in range(40):
        clip = clip_scene("train", index)
        assert clip.backwards().backwards() == clip
        for shown in (clip, clip.backwards()):
            questions = [question for kind in CLIP_TYPES for question in clip_candidates(shown, kind)]
            assert len({question.text for question in questions}) == len(questions)
        assert len(appearing(clip)) == len(disappearing(clip.backwards()))


def test_labels_of_cells():
    """An object that appears has its state from its first frame on, one that disappears leaves `gone` behind."""
    clip = clip_scene("train", 1)
    labels = cell_labels(clip)
    appeared = {f for f in range(FRAMES) if (labels[f, :, 0] == APPEARED).any()}
    gone = {f for f in range(FRAMES) if (labels[f, :, 0] == GONE).any()}
    assert appeared == set(range(min([a.first for a in clip.actors if a.first], default=FRAMES), FRAMES))
    assert gone == set(range(min([a.stop for a in clip.actors]), FRAMES))
    kept = choose_cells(labels.reshape(1, TOKENS, 3), 60, np.random.default_rng(0), "objects")
    shown = labels[..., 1] >= 0
    assert kept.shape == (1, 60)
    assert torch.equal(kept, kept.unique()[None])
    assert shown.reshape(-1)[kept[0].numpy()].sum() == min(60, shown.sum())


def test_weights_are_those_of_the_card():
    """The card names the file by its hash, and is of the bundled size."""
    weights = (VIDEO_MODEL_DIR / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in (VIDEO_MODEL_DIR / "README.md").read_text()
    assert len(weights) < 7e6


def test_features_of_training_are_those_of_the_model(loaded):
    """The cached features, through the projector, are the model's own visual tokens up to bfloat16."""
    clips = make_clips(loaded.model, "test", 0, 1)
    pixels = loaded.family.clip_arguments(loaded.processor.image_processor, _pictures(0), 2.0)[0]["pixel_values_videos"]
    with torch.no_grad():
        parts = loaded.model.model.get_video_features(pixels, return_dict=True).pooler_output  # by clip or by frame
        own = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
        cached = loaded.model.model.multi_modal_projector(clips.features[0].float())
    assert torch.nn.functional.cosine_similarity(own, cached, dim=-1).min() > 0.99
    assert torch.equal(backwards(backwards(clips.features)), clips.features)


def _pictures(index: int) -> list:
    from PIL import Image

    return [Image.fromarray(frame) for frame in draw_frames(clip_scene("test", index))]


@pytest.mark.full
def test_answers_need_several_frames(loaded):
    """Well above the floor with the clip; with its middle frame alone, shown eight times, only colours are left."""
    rows = [clip_row("test", i) for i in range(SAMPLES)]
    whole = rightly(loaded, rows)
    still = rightly(loaded, rows, lambda frames: [frames[FRAMES // 2]] * FRAMES)
    assert np.mean(list(whole.values())) > 0.75
    assert still["color"] > 0.7
    assert np.mean([still[kind] for kind in CLIP_TYPES[1:]]) < np.mean([whole[kind] for kind in CLIP_TYPES[1:]]) - 0.3


def test_card_names_the_questions():
    card = (VIDEO_MODEL_DIR / "README.md").read_text()
    assert all(re.search(rf"\| {kind} \|", card) for kind in CLIP_TYPES)
