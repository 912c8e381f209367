"""A report is of the last call, whatever way it took, or says that this saw no image."""

import copy
import threading
from contextlib import contextmanager

import pytest
import torch

import vtc
from tests.helpers import build, forward, generate, inputs_of, model_of, proceed, split
from vtc.core.errors import ConfigError, PatchError, UnsupportedError
from vtc.patching import find_family

families = pytest.mark.parametrize("case", vtc.families())


@pytest.fixture(params=["hiprune", "transprune"])
def strategy(request):
    """At the projector, and inside the language model."""
    return request.param


def merged(model, inputs):
    """What the language model is given: the features of the images among the embeddings of the text."""
    features = model.get_image_features(**{k: v for k, v in inputs.items() if k in IMAGES})
    features = torch.cat(list(features.pooler_output)).to(model.dtype)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    is_image = (inputs["input_ids"] == model.config.image_token_id).unsqueeze(-1)
    given = {k: v for k, v in inputs.items() if k not in (*IMAGES, "input_ids", "mm_token_type_ids")}
    return {**given, "inputs_embeds": embeds.masked_scatter(is_image, features)}


IMAGES = ("pixel_values", "image_sizes", "image_grid_thw", "batch_num_images")


def positions(model, inputs):
    """Where the tokens stand, which a caller of embeddings has to say."""
    mask = inputs["attention_mask"]
    if "image_grid_thw" not in inputs:
        return {"position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)}
    types = {"mm_token_type_ids": inputs["mm_token_type_ids"]} if "mm_token_type_ids" in inputs else {}
    index = model.model.get_rope_index(
        inputs["input_ids"], image_grid_thw=inputs["image_grid_thw"], attention_mask=mask, **types
    )
    return {"position_ids": index[0]}


@contextmanager
def without_planes(model):
    """The language model is given no DeepStack planes, which a stock model adds only for images that it is given."""

    def bare(module, args, kwargs):
        return args, {k: v for k, v in kwargs.items() if k not in ("visual_pos_masks", "deepstack_visual_embeds")}

    handle = find_family(model).language_model.register_forward_pre_hook(bare, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@families
@torch.no_grad()
def test_features_that_the_caller_puts_in(case, strategy):
    """Features asked of the patched model and put among the embeddings by hand are found there and pruned, through the
    whole model, the inner one and the language model alone; labels too."""
    model, inputs = model_of(case), inputs_of(case)
    where = positions(model, inputs)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with without_planes(model), vtc.patched(model, strategy):
        expected = model(**inputs, **where, labels=labels)
        kept = [image.kept.tolist() for image in vtc.report(model).images]
        for call in (model, model.model, find_family(model).language_model):
            more = {"labels": labels} if call is model else {}
            out = call(**merged(model, inputs), **where, **more)
            assert [image.kept.tolist() for image in vtc.report(model).images] == kept
            if call is model:
                torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=1e-9)
                torch.testing.assert_close(out.loss, expected.loss, rtol=0, atol=1e-6)
        assert vtc.report(model).kv_lengths


@families
@torch.no_grad()
def test_features_from_elsewhere_are_no_images(case, strategy):
    """Embeddings with features that this model has not given, or not last: unpruned, and the report says so. So does
    it after text alone; labels have the stock loss."""
    model, inputs = model_of(case), inputs_of(case)
    where, ready = positions(model, inputs), merged(model, inputs)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    stock = model(**ready, **where, labels=labels)
    with vtc.patched(model, strategy):
        for before in (lambda: None, lambda: merged(model, inputs_of(case, images=(1,), seed=9))):
            forward(model, inputs)
            assert vtc.report(model)
            before()
            out = model(**ready, **where, labels=labels)
            assert torch.equal(out.logits, stock.logits)
            assert torch.equal(out.loss, stock.loss)
            with pytest.raises(ConfigError, match="no image was seen in the last call.*possible"):
                vtc.report(model)
        forward(model, inputs)
        forward(model, inputs_of(case, images=(0,)))
        with pytest.raises(ConfigError, match="no image was seen in the last call"):
            vtc.report(model)


@families
def test_tokens_after_a_prompt_belong_to_its_report(case, strategy):
    """Decoding on an earlier prompt's cache brings that prompt's report back; another thread has its own last call."""
    model, inputs = model_of(case), inputs_of(case)
    with vtc.patched(model, strategy):
        first = forward(model, inputs, use_cache=True)
        report = vtc.report(model)
        cache = copy.deepcopy(first.past_key_values)
        generate(model, split(inputs)[0], 3)
        assert vtc.report(model) is not report
        token = torch.full((len(inputs["input_ids"]), 1), 5)
        with torch.no_grad():
            proceed(model, first.past_key_values, inputs["attention_mask"], token)
            assert vtc.report(model) is report
            forward(model, inputs_of(case, images=(0,)))
            proceed(model, cache, inputs["attention_mask"], token)
        assert vtc.report(model).to_dict() == report.to_dict()
        seen = []

        def elsewhere():
            seen.append(vtc.report(model))
            forward(model, split(inputs)[0])
            seen.append(vtc.report(model))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen[0].to_dict() == report.to_dict()
        assert len(seen[1].images) == 1
        assert vtc.report(model).to_dict() == report.to_dict()


ROUTES = {
    "language model": lambda model: setattr(model.model, "language_model", build("llava").model.language_model),
    "get_image_features": lambda model: setattr(
        model.model, "get_image_features", type(model.model).get_image_features.__get__(model.model)
    ),
    "inner model": lambda model: setattr(model, "model", build("llava").model),
}


@pytest.mark.parametrize("route", ROUTES)
def test_routes_around_the_hooks_are_refused(route, strategy):
    """Parts that were replaced after patching: nothing would be dropped, and that is said."""
    model, inputs = build("llava"), inputs_of("llava")
    with vtc.patched(model, strategy):
        forward(model, inputs)
        report = vtc.report(model)
        parts = model.model, model.model.language_model, vars(model.model)["get_image_features"]
        ROUTES[route](model)
        with pytest.raises(PatchError, match="possible"):
            forward(model, inputs)
        assert vtc.report(model) is report
        model.model, parts[0].language_model, parts[0].get_image_features = parts
        forward(model, inputs)


def test_copies_and_traces_are_refused(strategy):
    """What shares the hooks but not the patch."""
    model, inputs = build("llava"), inputs_of("llava")
    replica = copy.copy(model)
    replica._modules = {**model._modules, "model": copy.copy(model.model)}
    with vtc.patched(model, strategy):
        replica._modules["model"]._forward_pre_hooks = model.model._forward_pre_hooks
        with pytest.raises(UnsupportedError, match="DataParallel.*possible"):
            forward(replica, inputs)
        with pytest.raises(UnsupportedError, match=r"torch\.jit.*possible"):
            torch.jit.trace(model, (inputs["input_ids"], inputs["pixel_values"]), strict=False)
