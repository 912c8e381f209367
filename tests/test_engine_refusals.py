"""What vtc does not support is refused by name in one line, and the model works normally afterwards."""

import copy

import pytest
import torch

import vtc
from tests.helpers import (
    build,
    forward,
    generate,
    inputs_of,
    model_of,
    proceed,
    refused,
    unharmed,
)
from tests.helpers_decoder import on
from vtc.core.errors import PatchError, VtcError
from vtc.patches import FAMILIES

pytestmark = pytest.mark.product

families = pytest.mark.parametrize("case", vtc.families())


@pytest.fixture(params=["hiprune", "transprune"])
def strategy(request):
    """Pruned at the projector, and inside the language model, where layers hold different numbers of tokens."""
    return request.param


@pytest.fixture(params=vtc.families())
def patched(request, strategy):
    """A patched model, one prompt with an image, and a check that all is well after a refusal."""
    model, inputs = model_of(request.param), inputs_of(request.param, images=(1,))
    with unharmed(model, inputs), on(model, strategy):
        expected = generate(model, inputs, 4)
        yield model, inputs
        assert torch.equal(generate(model, inputs, 4).logits, expected.logits)


def clear(message):
    """A message says what is possible, or that something is not supported."""
    assert "possible" in message or "not supported" in message


def rejected(call, *words, kind=VtcError):
    """`call` is refused with a clear message."""
    clear(refused(call, *words, kind=kind))


def continued(inputs, first, *more):
    """The next turn: all that was written, then new ids, with a mask over everything."""
    ids = torch.cat([first.output.sequences, *more], 1)
    turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        turn["mm_token_type_ids"] = (ids == 120).int()
    return turn


@pytest.mark.parametrize("copied", [False, True], ids=["same", "copied"])
def test_second_turn_on_the_same_cache(patched, copied):
    """More text after a pruned prompt and what was written, on the cache of generate() or a copy of it."""
    model, inputs = patched
    first, more = generate(model, inputs, 3), torch.tensor([[5, 6, 7]])
    cache = first.output.past_key_values
    cache = copy.deepcopy(cache) if copied else cache
    fed, filled = torch.cat([first.tokens, more], 1), forward(model, inputs, use_cache=True).past_key_values
    expected = proceed(model, filled, inputs["attention_mask"], fed)[0].logits[:, -1]
    found = generate(model, continued(inputs, first, more), 3, past_key_values=cache).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("layers", [slice(None), slice(1)], ids=["all", "first"])
@pytest.mark.parametrize("how", ["crop", "slice"])
def test_cropped_cache(patched, how, layers):
    """A cache that the caller cut is out of step: in all layers, or in the first, which is as long as any."""
    model, inputs = patched
    first = generate(model, inputs, 4)
    cache = first.output.past_key_values
    if how == "crop" and any(getattr(layer, "is_sliding", False) for layer in cache.layers):
        pytest.skip("transformers itself refuses to crop a layer with a sliding window")
    if getattr(cache.layers[0], "is_sliding", False) and layers.stop:
        pytest.skip("a layer with a sliding window counts what it has seen, not what it holds")
    for layer in [layer for layer in cache.layers if hasattr(layer, "keys")][layers]:
        if how == "crop":
            layer.crop(-2)
        else:
            layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
    mask = torch.ones(1, first.output.sequences.shape[1], dtype=torch.long)
    step = {"input_ids": torch.tensor([[5]]), "attention_mask": mask}
    with torch.no_grad():
        rejected(lambda: model(**step, past_key_values=cache), "cropped", kind=PatchError)


def test_another_batch_on_the_cache(patched):
    """A pruned cache continued with another number of prompts."""
    model, inputs = patched
    with torch.no_grad():
        cache = forward(model, inputs, use_cache=True).past_key_values
        ids, mask = torch.tensor([[5], [5]]), torch.ones(2, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
        where = {"position_ids": torch.full((3, 2, 1) if "mm_token_type_ids" in inputs else (2, 1), 50)}
        rejected(lambda: model(input_ids=ids, attention_mask=mask, past_key_values=cache, **where), "batch of 2")


def test_tensor_of_logits_to_keep(patched):
    """Places in an image or before it, which may be gone; what is no list of places; and places beside labels."""
    model, inputs = patched
    rejected(lambda: forward(model, inputs, logits_to_keep=torch.tensor([0, 1])), "logits_to_keep", "behind the last")
    rejected(lambda: forward(model, inputs, logits_to_keep=torch.tensor([[1], [2]])), "(2, 1)", "list of places")
    rejected(lambda: forward(model, inputs, logits_to_keep=torch.tensor([True, False])), "bool", "list of places")
    given = {"labels": inputs["input_ids"], "logits_to_keep": torch.tensor([-1])}
    rejected(lambda: forward(model, inputs, **given), "beside labels")


@pytest.mark.parametrize("case", ["qwen2_vl", "qwen2_5_vl"])
def test_video(case, monkeypatch):
    """Video inputs in a family that says of none how to take them, in the forward and through generate()."""
    monkeypatch.setattr(FAMILIES[case], "video", None)
    model, inputs = build(case), inputs_of(case, images=(1,))
    video = model.config.video_token_id
    ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == 120, video)
    moving = {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
    moving |= {"pixel_values_videos": inputs["pixel_values"], "video_grid_thw": inputs["image_grid_thw"]}
    if "mm_token_type_ids" in inputs:
        moving["mm_token_type_ids"] = (ids == video).int() * 2
    stock = forward(model, moving).logits
    with vtc.patched(model, "uniform", keep=0.3):
        expected = generate(model, inputs, 2)
        rejected(lambda: forward(model, moving), "video")
        rejected(lambda: generate(model, moving, 2), "video")
        assert torch.equal(generate(model, inputs, 2).logits, expected.logits)
    assert torch.equal(forward(model, moving).logits, stock)


def test_features_from_before_the_patch():
    """Precomputed image features carry no signals: refused where transformers takes them at all."""
    model, inputs = model_of("llava"), inputs_of("llava", images=(1,))
    with torch.no_grad():
        features = model.model.get_image_features(inputs["pixel_values"], return_dict=True)
    bare = {k: v for k, v in inputs.items() if k != "pixel_values"}
    try:
        forward(model, bare, mm_encoder_outputs={"image": features})
    except TypeError as error:
        pytest.skip(f"the stock model does not take them: {error}")
    with vtc.patched(model, "uniform", keep=0.3):
        rejected(lambda: forward(model, bare, mm_encoder_outputs={"image": features}), "precomputed")


@families
def test_report_of_a_refused_call_is_the_last_good_one(case):
    """A refusal writes no report."""
    model, inputs = model_of(case), inputs_of(case, images=(1,))
    with vtc.patched(model, "uniform", keep=0.3):
        forward(model, inputs)
        before = vtc.report(model)
        rejected(lambda: forward(model, inputs, logits_to_keep=torch.tensor([0])))
        assert vtc.report(model) is before
