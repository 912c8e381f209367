"""The oracle of `vtc bench` computes exactly what the patched model does, or says why there is none."""

import pytest
import torch

import vtc
from tests.helpers import model_of, state
from tests.helpers_video import with_clips
from vtc.bench.oracle import NoOracle, Oracle, difference, record
from vtc.bench.prompts import inputs_of, pictures
from vtc.bench.subject import _prepare
from vtc.check.batch import cached_lengths
from vtc.core.errors import UnsupportedError
from vtc.patches import FAMILIES
from vtc.patching import find_family

pytestmark = pytest.mark.product

AT_PROJECTOR = ("hiprune", "visionzip", "pool", "divprune", "random", "tome")
INSIDE = ("fastv", "pyramiddrop", "transprune", "hiprune+transprune", "dart", "todre")
NEW = 5


@pytest.fixture(scope="module", params=list(FAMILIES))
def asked(request):
    """A model of each family and its inputs: two equal prompts, of two images where their tokens are fixed."""
    model = model_of(request.param)
    before = model.generation_config
    _prepare(model)
    family = find_family(model)
    visual = 2 * (family.encoder.tokens or 75)
    yield family, inputs_of(family, pictures(family, visual, None), 40, 2)
    model.generation_config = before


def ran(family, inputs, strategy, **options):
    """A strategy's recording on the inputs."""
    with vtc.patched(family.model, strategy, 0.4, **options):
        return record(family, lambda: write(family, inputs), lambda: vtc.report(family.model))


def write(family, inputs):
    """Some tokens, with the logits of each."""
    return family.model.generate(**inputs, max_new_tokens=NEW, output_logits=True)


@pytest.mark.parametrize("strategy", AT_PROJECTOR + INSIDE)
def test_equals_the_patched_model(asked, strategy):
    """Logits of every step and ids, with fewer tokens than the prompt had; merged features and renumbered positions
    too; the model is left as it was."""
    family, inputs = asked
    if strategy == "tome" and "encoder" in family.refuses:
        pytest.skip(f"tokens cannot be dropped inside the encoder of {family.name}")
    recording = ran(family, inputs, strategy)
    oracle = Oracle(family, inputs, recording)
    before = state(family.model)
    with oracle.fed():
        output = write(family, oracle.inputs)
    assert state(family.model) == before
    assert difference(recording, output) < 1e-4
    torch.testing.assert_close(output.logits[0], recording.logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(output.sequences[:, -NEW:], recording.ids)
    shorter = oracle.inputs["input_ids"].shape[1] < inputs["input_ids"].shape[1]
    assert shorter == (recording.report.images[0].entered < recording.report.images[0].before)
    assert bool(oracle.columns) == any(s.site == "decoder" for s in recording.report.images[0].steps)
    cache, lengths = output.past_key_values, [n + NEW - 1 for n in recording.report.prompt_lengths[0]]
    for layer, found, length in zip(cache.layers, cached_lengths(cache), lengths, strict=True):
        most = layer.sliding_window - 1 if getattr(layer, "is_sliding", False) else length
        assert found in (None, min(length, most))


@with_clips
@pytest.mark.parametrize("strategy", ["divprune", "visionzip", "tome", "fastv", "hiprune+transprune"])
def test_clips(case, strategy, monkeypatch):
    """A clip of four or eight frames in two equal prompts, with text between the frames where the family has it."""
    model = model_of(case)
    monkeypatch.setattr(model, "generation_config", model.generation_config)
    _prepare(model)
    family = find_family(model)
    shown = pictures(family, 80, None, frames=8)
    inputs = inputs_of(family, shown, 20, 2)
    if strategy == "tome" and family.sizes != "image_grid_thw":
        with pytest.raises(UnsupportedError, match="resamples the whole raster of a clip"):
            ran(family, inputs, strategy)
        return
    recording = ran(family, inputs, strategy)
    (first, second) = recording.report.images
    assert (first.before, second.entered) == (shown.total, first.entered)
    assert len(shown.tokens) == (4 if family.sizes == "image_grid_thw" else 8)
    oracle = Oracle(family, inputs, recording)
    with oracle.fed():
        output = write(family, oracle.inputs)
    assert difference(recording, output) < 1e-4
    assert torch.equal(output.sequences[:, -NEW:], recording.ids)
    assert oracle.inputs["input_ids"].shape[1] == inputs["input_ids"].shape[1] - first.before + first.entered


def test_merging_inside_has_none(asked):
    """VisionDrop makes new tokens between layers."""
    family, inputs = asked
    recording = ran(family, inputs, "visiondrop")
    with pytest.raises(NoOracle, match="merged or reordered"):
        Oracle(family, inputs, recording)


def test_positions_with_gaps_have_none():
    """A stock LLaVA numbers its tokens without gaps."""
    model = model_of("llava")
    before = model.generation_config
    _prepare(model)
    family = find_family(model)
    inputs = inputs_of(family, pictures(family, 64, None), 20, 1)
    with pytest.raises(NoOracle, match="positions=keep"):
        Oracle(family, inputs, ran(family, inputs, "hiprune", positions="keep"))
    model.generation_config = before


def test_wrong_tokens_are_noticed(asked):
    """Fed other rows, the first token's logits differ."""
    family, inputs = asked
    recording = ran(family, inputs, "random")
    oracle = Oracle(family, inputs, recording)
    oracle.rows = [rows.flip(0) for rows in oracle.rows]
    with oracle.fed():
        assert difference(recording, write(family, oracle.inputs)) > 1e-4
