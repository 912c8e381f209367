"""Masks of every kind: ready-made 4-D ones, dictionaries by layer type, none at all, and sliding windows."""

import pytest
import torch
from transformers import MistralConfig

import vtc
from tests.helpers import HYBRIDS, SPECIAL, forward, generate, inputs_of, kept_of, model_of, positions_of, split
from tests.helpers_oracle import truth
from vtc.patches import FAMILIES
from vtc.patches._tiny import TEXT

pytestmark = pytest.mark.product

families = pytest.mark.parametrize("case", vtc.families())
renumbered = pytest.mark.parametrize("positions", ["keep", "compact"])
WINDOW = 24


def causal(mask, kind):
    """A 2-D mask as a causal 4-D one: bool (True = seen) or additive."""
    length = mask.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None].bool()
    # Rows of padding on the left would see nothing.
    seen = seen | torch.eye(length, dtype=torch.bool) & ~seen.any(-1, keepdim=True)
    if kind == "bool":
        return seen
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)


@pytest.mark.parametrize("case", [name for name in vtc.families() if name not in HYBRIDS])  # which refuse them
@renumbered
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_ready_made_masks(case, positions, padding, kind):
    """A 4-D mask gives what its 2-D one gives, at every real column."""
    model, inputs = model_of(case), inputs_of(case, padding=padding)
    if FAMILIES[case].block_types is not None:
        pytest.skip("a 4-D mask of the caller has neither the blocks nor the windows of this family")
    where = positions_of(inputs)
    if not where:
        mm = {"mm_token_type_ids": inputs["mm_token_type_ids"]} if "mm_token_type_ids" in inputs else {}
        where["position_ids"] = model.model.get_rope_index(
            inputs["input_ids"], image_grid_thw=inputs["image_grid_thw"], attention_mask=inputs["attention_mask"], **mm
        )[0]
    ready = dict(inputs, attention_mask=causal(inputs["attention_mask"], kind))
    with vtc.patched(model, "hiprune", keep=0.3, positions=positions), torch.no_grad():
        flat = model(**inputs, **where).logits
        counts = vtc.report(model).prompts_after
        four = model(**ready, **where).logits
        assert vtc.report(model).prompts_after == counts
    for b, n in enumerate(counts):
        real = slice(-n, None) if padding == "left" else slice(n)
        torch.testing.assert_close(four[b, real], flat[b, real], atol=1e-9, rtol=0)


@families
@renumbered
def test_unequal_rows_without_a_mask(case, positions):
    """Two prompts of one length, only one with an image, no mask: filler is made and stays unseen."""
    model = model_of(case)
    inputs = inputs_of(case, images=(1,))
    text = torch.randint(3, 100, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(1))
    both = dict(inputs, input_ids=torch.cat([inputs["input_ids"], text]))
    both["attention_mask"] = torch.ones_like(both["input_ids"])
    for name in {"mm_token_type_ids", "token_type_ids"} & {*inputs}:
        both[name] = torch.cat([inputs[name], torch.zeros_like(text).to(inputs[name])])
    bare = {k: v for k, v in both.items() if k != "attention_mask"}
    with vtc.patched(model, "hiprune", keep=0.3, positions=positions), torch.no_grad():
        out = model(**bare, use_cache=True)
        report, logits = vtc.report(model), [out.logits[:, -1]]
        expected = generate(model, both, 4)
        for step in range(3):
            out = model(input_ids=expected.tokens[:, step : step + 1], past_key_values=out.past_key_values)
            logits.append(out.logits[:, -1])
    torch.testing.assert_close(torch.stack(logits), expected.logits, atol=1e-9, rtol=0)
    for b, single in enumerate(split(both, (1, 0))):
        answer = truth(model, single, kept_of(report, b), positions, 4)
        assert expected.tokens[b].tolist() == answer.tokens
        torch.testing.assert_close(expected.logits[:, b], answer.logits[-4:], atol=1e-9, rtol=0)


@families
def test_shared_budget_with_a_text_row(case):
    """scope=per_request with a prompt that has no image."""
    model, inputs = model_of(case), inputs_of(case, images=(2, 0))
    with vtc.patched(model, "uniform", keep=11, scope="per_request"):
        generate(model, inputs, 2)
        assert sum(i.after for i in vtc.report(model).images) == 11


@pytest.fixture(scope="module")
def sliding():
    """LLaVA with a Mistral whose window is shorter than the pruned prompts."""
    return FAMILIES["llava"].tiny(text=MistralConfig(**TEXT, **SPECIAL, sliding_window=WINDOW)).double()


@renumbered
def test_sliding_window_equals_oracle(sliding, positions):
    """The window counts the tokens that are left."""
    inputs = inputs_of("llava")
    with vtc.patched(sliding, "hiprune", keep=0.6, positions=positions):
        out = generate(sliding, inputs, 6)
        report = vtc.report(sliding)
    assert min(report.prompts_after) > WINDOW
    for b, single in enumerate(split(inputs)):
        expected = truth(sliding, single, kept_of(report, b), positions, 6)
        assert out.tokens[b].tolist() == expected.tokens
        torch.testing.assert_close(out.logits[:, b], expected.logits[-6:], atol=1e-9, rtol=0)


def test_static_cache_with_a_sliding_window(sliding):
    """Where the last query sees only a part of the prompt, the rest of it is no padding."""
    inputs = inputs_of("llava")
    with vtc.patched(sliding, "hiprune", keep=0.6):
        expected = generate(sliding, inputs, 6)
        found = generate(sliding, inputs, 6, cache_implementation="static")
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-9, rtol=0)


def test_text_goes_through_the_sliding_model(sliding):
    """The stock path of that model is bit-equal for text."""
    text = inputs_of("llava", images=(0, 0))
    stock = forward(sliding, text).logits
    with vtc.patched(sliding, "hiprune", keep=0.6):
        assert torch.equal(forward(sliding, text).logits, stock)
