"""What is refused by name while layers hold different numbers of tokens, and that all is well afterwards."""

import contextlib

import pytest
import torch

import vtc
from tests.helpers import build, forward, generate, inputs_of, model_of, state
from vtc.errors import PatchError, UnsupportedError, VtcError

families = pytest.mark.parametrize("case", vtc.families())


@pytest.fixture(params=vtc.families())
def patched(request):
    """A patched model, one prompt with an image, and a check that all is well after a refusal."""
    model, inputs = model_of(request.param), inputs_of(request.param, images=(1,))
    before, stock = state(model), forward(model, inputs).logits
    with vtc.patched(model, "transprune"):
        expected = generate(model, inputs, 4)
        yield model, inputs
        assert torch.equal(generate(model, inputs, 4).logits, expected.logits)
    assert state(model) == before
    assert torch.equal(forward(model, inputs).logits, stock)


def refused(call, *kinds):
    """`call` raises one line of one of `kinds` that says what is possible."""
    with pytest.raises(kinds or VtcError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "possible" in message or "not supported" in message


def test_assisted_generation(patched):
    """An assistant model rolls the cache back."""
    model, inputs = patched
    refused(lambda: generate(model, inputs, 8, assistant_model=build(vtc.report(model).family)), PatchError)


def test_prompt_lookup(patched):
    """Prompt lookup rolls the cache back as well. A draft that is always right would pass, so the text repeats."""
    model, inputs = patched
    text = torch.tensor([[7, 8, 9, 7, 8, 30, 7, 8]])
    ids = torch.cat([inputs["input_ids"], text], 1)
    longer = dict(inputs, input_ids=ids, attention_mask=torch.ones_like(ids))
    if "mm_token_type_ids" in inputs:
        longer["mm_token_type_ids"] = (ids == 120).int()
    lookup = dict(prompt_lookup_num_tokens=3, max_matching_ngram_size=1, eos_token_id=2)
    refused(lambda: generate(model, longer, 12, **lookup), PatchError, UnsupportedError)


@pytest.mark.parametrize("layers", [slice(None), slice(1)], ids=["all", "first"])
def test_cropped_cache(patched, layers):
    """A cache that is cut in all layers, as crop() does it, or in the first, which is the longest."""
    model, inputs = patched
    cache = generate(model, inputs, 4).output.past_key_values
    for layer in cache.layers[layers]:
        layer.crop(-2)
    mask = torch.ones(1, inputs["input_ids"].shape[1] + 4, dtype=torch.long)
    with torch.no_grad():
        refused(lambda: model(input_ids=torch.tensor([[5]]), attention_mask=mask, past_key_values=cache), PatchError)


def test_second_turn_on_the_same_cache(patched):
    """More text after what was written: refused, or continued as by hand (where generate() leaves the 2-D mask)."""
    model, inputs = patched
    first = generate(model, inputs, 3)
    ids = torch.cat([first.output.sequences, torch.tensor([[5, 6, 7]])], 1)
    turn, new = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids[:, inputs["input_ids"].shape[1] :]
    with torch.no_grad():
        cache = forward(model, inputs, use_cache=True).past_key_values
        expected = model(input_ids=new, attention_mask=turn["attention_mask"], past_key_values=cache).logits[:, -1]
    if "mm_token_type_ids" in inputs:
        turn["mm_token_type_ids"] = (ids == 120).int()
    with contextlib.suppress(PatchError):
        found = generate(model, turn, 1, past_key_values=first.output.past_key_values).logits[0]
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@families
def test_gradients_and_checkpointing(case):
    """In training the loss moves the features that survived; gradient checkpointing would run layers a second time
    without what was decided in the first, and is refused."""
    model, inputs = build(case), inputs_of(case)
    part = model.model.visual.merger if hasattr(model.model, "visual") else model.model.multi_modal_projector
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] >= 120, -100)
    model.train()
    with vtc.patched(model, "transprune"):
        model(**inputs, labels=labels).loss.backward()
        gradient = [p.grad for p in part.parameters()]
        assert all(bool(g.isfinite().all()) for g in gradient)
        assert any(float(g.abs().max()) > 0 for g in gradient)
        model.gradient_checkpointing_enable()
        refused(lambda: model(**inputs, labels=labels, use_cache=False), UnsupportedError)
