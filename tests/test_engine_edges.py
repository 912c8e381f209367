"""Calls at the edge of what a patched model is made for: right, or refused in one line; never silently wrong."""

import pytest
import torch
from accelerate import dispatch_model
from transformers import Gemma2Config, LlamaConfig

import vtc
from tests.helpers import IMAGE_TOKEN, SPECIAL, build, forward, generate, inputs_of, model_of, split
from vtc.core.errors import ConfigError, PatchError, UnsupportedError
from vtc.patches import FAMILIES
from vtc.patches._tiny import TEXT
from vtc.patching import find_family

pytestmark = pytest.mark.product

strategies = pytest.mark.parametrize("strategy", ["hiprune", "fastv", "transprune", "visiondrop"])
families = pytest.mark.parametrize("case", vtc.families())


@strategies
@families
def test_accelerates_hooks(strategy, case):
    """dispatch_model, which rebuilds the encoder's output on its way to the language model."""
    model, inputs = build(case), inputs_of(case)
    with vtc.patched(model, strategy):
        expected = generate(model, inputs, 3)
    model = dispatch_model(model, device_map={"": "cpu"}, main_device="cpu", force_hooks=True)
    with vtc.patched(model, strategy):
        assert torch.equal(generate(model, inputs, 3).logits, expected.logits)


def one(case="llava"):
    """A model and one prompt."""
    return model_of(case), split(inputs_of(case))[0]


@strategies
def test_hidden_images_are_refused(strategy):
    """A mask that hides image tokens."""
    model, inputs = one()
    mask = inputs["attention_mask"].clone()
    mask[0, (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero().flatten()[:20]] = 0
    with vtc.patched(model, strategy), pytest.raises(UnsupportedError, match="hides image tokens; possible"):
        forward(model, dict(inputs, attention_mask=mask))


@pytest.mark.parametrize("strategy", ["transprune", "fastv", "pyramiddrop", "uniform+transprune"])
def test_holes_in_the_mask_change_nothing(strategy):
    """Masked columns between two pieces of text after the image."""
    model, inputs = one()
    more = torch.randint(3, 100, (1, 30), generator=torch.Generator().manual_seed(5))
    before, hole = inputs["input_ids"], torch.full((1, 20), 7)
    plain, holed = torch.cat([before, more], 1), torch.cat([before, hole, more], 1)
    mask = torch.ones_like(holed)
    mask[:, before.shape[1] : before.shape[1] + 20] = 0
    with vtc.patched(model, strategy):
        a = forward(model, dict(inputs, input_ids=plain, attention_mask=torch.ones_like(plain))).logits[:, -1]
        kept = [step.kept for step in vtc.report(model).images[0].steps]
        b = forward(model, dict(inputs, input_ids=holed, attention_mask=mask)).logits[:, -1]
        again = [step.kept for step in vtc.report(model).images[0].steps]
    assert all(torch.equal(x, y) for x, y in zip(kept, again, strict=True))
    torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@strategies
def test_finite_biases_hide_nothing(strategy):
    """A 4-D mask with distances as biases: no token counts as padding."""
    model, inputs = one()
    n = inputs["input_ids"].shape[1]
    bias = (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0) * -0.01
    bias = bias.double().masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), torch.finfo(torch.float64).min)
    with vtc.patched(model, strategy), torch.no_grad():
        model(**dict(inputs, attention_mask=bias[None, None]))
        report = vtc.report(model)
    text = n - report.tokens_before
    assert (report.prompts_before, report.prompts_after) == ([n], [text + report.tokens_after])


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_a_second_drop_before_the_same_layer_looks_again(positions):
    """It ranks by the attention of the tokens that the first drop left, as the layer itself would compute it."""
    model, inputs = one()
    eager = build("llava")
    eager.set_attn_implementation("eager")
    first = {"method": "pyramiddrop", "layer_list": [2], "image_token_ratio_list": [0.8]}
    second = {**first, "image_token_ratio_list": [0.4]}
    start = int((inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[0])
    with vtc.patched(eager, {"positions": positions, "stages": [first]}):
        attention = forward(eager, inputs, output_attentions=True).attentions[2][0].mean(0)[-1]
        left = vtc.report(eager).images[0].kept
    with vtc.patched(model, {"positions": positions, "stages": [first, second]}):
        forward(model, inputs)
        kept = vtc.report(model).images[0].kept
    best = attention[start : start + len(left)].topk(len(kept)).indices.sort().values
    assert torch.equal(kept, left[best])


def test_a_cache_belongs_to_its_patch():
    """Decoding under another patch than the one that filled the cache."""
    model, inputs = one()
    with vtc.patched(model, "transprune"):
        cache = forward(model, inputs, use_cache=True).past_key_values
    mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
    with vtc.patched(model, "hiprune"), torch.no_grad(), pytest.raises(PatchError, match="another patch.*possible"):
        model(input_ids=torch.tensor([[5]]), attention_mask=mask, past_key_values=cache)


@pytest.mark.parametrize("layer", [0, 3])
def test_a_failed_forward_is_not_reported(layer):
    """The report stays that of the last forward that came to its end."""
    model, inputs = build("llava"), inputs_of("llava")

    def fail(*_):
        raise RuntimeError("out of memory")

    with vtc.patched(model, "pyramiddrop"):
        forward(model, inputs)
        before = vtc.report(model)
        handle = model.model.language_model.layers[layer].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            forward(model, split(inputs)[0])
        handle.remove()
        assert vtc.report(model) is before
        assert str(before)


@pytest.mark.parametrize("path", ["model.language_model.layers.3", "model.vision_tower", "model.language_model"])
def test_an_interrupted_forward_leaves_nothing(path):
    """The language model alone, after Ctrl-C in a module."""
    model, inputs = build("llava"), split(inputs_of("llava"))[0]
    language, embeds = find_family(model).language_model, model.get_input_embeddings()(inputs["input_ids"])

    def interrupt(*_):
        raise KeyboardInterrupt

    with vtc.patched(model, "transprune"), torch.no_grad():
        expected = language(inputs_embeds=embeds).last_hidden_state
        handle = model.get_submodule(path).register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
        handle.remove()
        assert torch.equal(language(inputs_embeds=embeds).last_hidden_state, expected)


STRANGE = {
    "softcap": (lambda: Gemma2Config(**TEXT, **SPECIAL, head_dim=16), UnsupportedError, "soft-capped attention"),
    "one layer": (lambda: LlamaConfig(**{**TEXT, "num_hidden_layers": 1}, **SPECIAL), ConfigError, "has 1 layer"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_text_models_that_are_not_understood(name):
    """Refused when patched, inside the language model only."""
    text, kind, words = STRANGE[name]
    model = FAMILIES["llava"].tiny(text=text())
    for strategy in ("fastv", "transprune", "visiondrop"):
        with pytest.raises(kind, match=f"{words}.*possible"):
            vtc.patch(model, strategy)
    vtc.unpatch(vtc.patch(model, "uniform"))


@pytest.mark.parametrize("strategy", ["fastv", "transprune", "visiondrop"])
def test_gradients_are_those_of_the_pruned_forward(strategy):
    """Autograd's directional derivative by the pixels against a finite difference, merges included."""
    model, inputs = one()
    options = {"visiondrop_projector.keep": 0.5} if strategy == "visiondrop" else {}
    pixels = inputs["pixel_values"].clone().requires_grad_(True)
    direction, step = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=pixels.dtype), 2e-3

    def loss(x):
        return model(**dict(inputs, pixel_values=x)).logits[0, -5:].square().sum()

    with vtc.patched(model, strategy, **options):
        (gradient,) = torch.autograd.grad(loss(pixels), pixels)
        with torch.no_grad():
            slope = (loss(pixels + step * direction) - loss(pixels - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=0.02, atol=1e-3)
