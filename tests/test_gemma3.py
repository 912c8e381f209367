"""Gemma 3: masks of the kept tokens, crops as images, and what is refused by name."""

import pytest
import torch
from torch import nn

import vtc
from tests.helpers import FAMILIES, IMAGE_TOKEN, forward, generate, inputs_of, model_of, refused
from vtc.core.errors import UnsupportedError
from vtc.patching import find_family

WINDOW = 16


def masks_of(model, inputs):
    """The masks by layer type that reach the language model."""
    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    forward(model, inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("padding", ["left", "right"])
def test_masks_of_the_kept_tokens(padding):
    """Causal, or in one image; in sliding layers within a window of kept tokens, which blocks do not leave."""
    model, inputs = model_of("gemma3"), inputs_of("gemma3", padding=padding)
    with vtc.patched(model, "uniform", keep=0.3):
        masks, report = masks_of(model, inputs), vtc.report(model)
    width = max(report.prompts_after)
    assert {name: mask.shape[2:] for name, mask in masks.items()} == dict.fromkeys(masks, (width, width))
    for b, length in enumerate(report.prompts_after):
        first = width - length if padding == "left" else 0
        ids = inputs["input_ids"][b][inputs["attention_mask"][b].bool()]
        image = torch.full((len(ids),), -1)
        places = (ids == IMAGE_TOKEN).nonzero().flatten().split(64) if (ids == IMAGE_TOKEN).any() else ()
        stays = ids != IMAGE_TOKEN
        for number, (where, kept) in enumerate(
            zip(places, [i.kept for i in report.images if i.prompt == b], strict=True)
        ):
            image[where], stays[where[kept]] = number, True
        image, rank = image[stays], torch.arange(length)
        full = (rank[:, None] >= rank) | (image[:, None] == image) & (image >= 0)
        sliding = full & (rank[:, None] - rank < WINDOW)
        same = (image[:, None] == image[None]) & (image >= 0)
        older = same | sliding  # in transformers 5.0.0 a block does leave the window
        for name, expected in (("full_attention", (full,)), ("sliding_attention", (sliding, older))):
            mask = masks[name][b, 0, first : first + length, first : first + length]
            assert any(torch.equal(mask if mask.dtype == torch.bool else mask == 0, x) for x in expected)


def test_without_types_attention_is_causal():
    """The stock model makes blocks only where it is given types; so does the patched one."""
    model, inputs = model_of("gemma3"), inputs_of("gemma3", images=(1,))
    bare = {name: x for name, x in inputs.items() if name != "token_type_ids"}
    with vtc.patched(model, "uniform", keep=0.3):
        blocks, causal = forward(model, inputs).logits, forward(model, bare).logits
        generate(model, bare, 2)
    assert not torch.allclose(blocks, causal)


def test_crops_of_pan_and_scan_are_images():
    """A picture and its crops, 64 placeholders each, with text between them: three images with a budget each."""
    model, inputs = model_of("gemma3"), inputs_of("gemma3", images=(3,))
    with vtc.patched(model, "hiprune", keep=0.25):
        forward(model, inputs)
        images = vtc.report(model).images
    assert [(i.before, len(i.kept)) for i in images] == [(64, 16)] * 3


def test_stages_elsewhere_are_refused():
    """In one line, by name, with what is possible."""
    model = model_of("gemma3")
    for strategy in ("fastv", "hiprune_transprune", "var"):
        refused(
            lambda s=strategy: vtc.patch(model, s), "rotary embeddings", "stage at the projector", kind=UnsupportedError
        )
    refused(lambda: vtc.patch(model, "tome", keep=0.5), "gemma3", "stage at the projector", kind=UnsupportedError)


@pytest.mark.parametrize("case", vtc.families())
def test_sites_are_those_that_the_family_gives(case):
    """What a family says without a model is what its model has."""
    family = find_family(model_of(case))
    for name, site in (("encoder", family.encoder_site), ("decoder", family.decoder_site)):
        if name not in FAMILIES[case].refuses:
            site()
        else:
            refused(site, "possible: a stage at the projector", kind=UnsupportedError)


def test_gemma4_is_refused_by_name():
    """One line with the families that there are."""

    class Other(nn.Module):
        config = type("Config", (), {"model_type": "gemma4"})()

    refused(lambda: vtc.patch(Other()), "gemma4", "gemma3", "qwen2_5_vl", kind=UnsupportedError)
