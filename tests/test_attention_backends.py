"""The observed layer under a flash-style backend: its name, its packed sequences, and what it sees of its config."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vtc
from tests.helpers import INDUCTOR, build, generate, inputs_of
from vtc.patches import FAMILIES
from vtc.patching import find_family

pytestmark = pytest.mark.product
NAMES = ("test_flash_attention_2", "kernels-community/test-flash-attn2")  # a package's and a hub kernel's


def fake_flash(module, query, key, value, attention_mask=None, scaling=None, cu_seq_lens_q=None, **kwargs):
    """A flash-style backend for CPUs: one call over packed sequences, cut by cu_seq_lens_q."""
    assert module.config._attn_implementation in NAMES, "the backend must see its own name"
    cuts = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    spans = [slice(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    attend = torch.nn.functional.scaled_dot_product_attention
    parts = [attend(query[:, :, s], key[:, :, s], value[:, :, s], scale=scaling) for s in spans]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


@pytest.fixture(params=NAMES)
def flash(request):
    ALL_ATTENTION_FUNCTIONS.register(request.param, fake_flash)
    yield request.param
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop(request.param)


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("strategy", ["hiprune", "vtc_cls"])
@pytest.mark.parametrize("name", vtc.families())
def test_flash_style_backend_selects_and_answers_like_sdpa(flash, name, strategy, positions):
    model = FAMILIES[name].tiny().double()
    inputs = FAMILIES[name].tiny_inputs(model, images=(2,))
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items() if k != "attention_mask"}
    vtc.patch(model, strategy, keep=0.3, positions=positions)
    expected = model(**inputs).logits
    kept = [image.kept.tolist() for image in vtc.report(model).images]
    # Set on the encoder's config itself: set_attn_implementation would look for the real flash package.
    tower = find_family(model).tower
    for module in tower.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = flash
    found = model(**inputs).logits
    assert [image.kept.tolist() for image in vtc.report(model).images] == kept
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@INDUCTOR
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["hiprune", "transprune", "tome"])
def test_flex_attention(strategy):
    """Compiled for the CPU, in float32: the same ids and tokens as with SDPA."""
    model, inputs = build("llava", torch.float32), inputs_of("llava", images=(1,), dtype=torch.float32)
    found = []
    with vtc.patched(model, strategy):
        for backend in ("sdpa", "flex_attention"):
            model.set_attn_implementation(backend)
            written = generate(model, inputs, 4)
            report = vtc.report(model)
            kept = [[step.kept.tolist() for step in image.steps] or image.kept.tolist() for image in report.images]
            found.append((written, kept))
    (sdpa, kept), (flex, same) = found
    assert torch.equal(flex.tokens, sdpa.tokens)
    torch.testing.assert_close(flex.logits, sdpa.logits, rtol=0, atol=1e-4)
    assert same == kept
