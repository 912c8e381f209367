"""Clips of the GLM families: the placeholders are those of images, each frame between marks of its own."""

import inspect

import pytest
import torch

import vtc
from tests.helpers import FAMILIES, generate, model_of, split, spy
from tests.helpers_oracle import unpruned
from vtc.patches._tiny import BOS, IMAGE_TOKEN, PAD
from vtc.patches.glm4v import END, START, VIDEO_END, VIDEO_START
from vtc.patching import find_family

CLIPS = [(2, 8, 12), (3, 8, 8)]
FAMILY = ["glm4v", *(pytest.param(name, marks=pytest.mark.full) for name in ("glm46v", "glm4v_moe"))]


def clips(model):
    """Two prompts, each with a clip of several frames, each followed by its time; padded on the left."""
    generator, rows = torch.Generator().manual_seed(3), []
    for frames, h, w in CLIPS:
        frame = [START, *[IMAGE_TOKEN] * (h * w // 4), END]
        rows.append([BOS, 5, 6, VIDEO_START, *(i for f in range(frames) for i in (*frame, 40 + f)), VIDEO_END, 7, 8, 9])
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values_videos": torch.randn(sum(t * h * w for t, h, w in CLIPS), 96, generator=generator).double(),
        "video_grid_thw": torch.tensor(CLIPS),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int() * 2
    return inputs


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("case", FAMILY)
def test_clips_equal_the_short_prompt(case, positions):
    """What is left of each clip, in a padded batch, has the logits of the prompt that is made short by hand."""
    model = model_of(case)
    inputs = clips(model)
    with vtc.patched(model, "hiprune", keep=0.4, positions=positions), spy(model) as seen, torch.no_grad():
        logits = model(**inputs).logits
        report = vtc.report(model)
        tokens = generate(model, inputs, 4).tokens
    assert [(i.prompt, i.before) for i in report.images] == [(0, 48), (1, 48)]
    mask = seen[0]["attention_mask"]
    real = torch.ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    for b, single in enumerate(split(inputs, (1, 1), "video_grid_thw")):
        embeds, where = unpruned(model, single)
        visual = single["input_ids"][0] == IMAGE_TOKEN
        stays = ~visual
        stays[visual.nonzero().flatten()[report.images[b].kept]] = True
        places = stays.nonzero().flatten()
        short = where[:, places] if positions == "keep" else torch.arange(len(places)).expand(3, -1)
        with torch.no_grad():
            out = model.model.language_model(inputs_embeds=embeds[:, places], position_ids=short[:, None])
            expected = model.lm_head(out.last_hidden_state)[0]
        torch.testing.assert_close(logits[b][real[b]], expected, atol=1e-9, rtol=0)
        with vtc.patched(model, "hiprune", keep=0.4, positions=positions):
            assert torch.equal(generate(model, single, 4).tokens[0], tokens[b])


def test_placeholders_by_types_and_by_marks():
    """The types tell an image from a clip; without them the marks around the clip do."""
    family = find_family(model_of("glm4v"))
    ids = torch.tensor(
        [[BOS, START, IMAGE_TOKEN, END, VIDEO_START, START, IMAGE_TOKEN, IMAGE_TOKEN, END, VIDEO_END, 5]]
    )
    types = torch.tensor([[0, 0, 1, 0, 0, 0, 2, 2, 0, 0, 0]])
    for given in (types, None):
        assert family.placeholders(ids, given, "image").nonzero()[:, 1].tolist() == [2]
        assert family.placeholders(ids, given, "video").nonzero()[:, 1].tolist() == [6, 7]


def test_published_settings_are_those_of_qwen():
    """Positions are kept, as for the other families with M-RoPE."""
    for name in ("glm4v", "glm46v", "glm4v_moe"):
        assert (FAMILIES[name].follows, FAMILIES[name].positions()) == ("qwen2_5_vl", "keep")
