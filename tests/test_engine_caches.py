"""Caches of every kind: static ones, reused and reset ones, and those that the user fills by hand."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

import vtc
from tests.helpers import CASES, forward, generate, inputs_of, model_of

families = pytest.mark.parametrize("case", vtc.families())
renumbered = pytest.mark.parametrize("positions", ["keep", "compact"])


@pytest.mark.parametrize("case", CASES)
@renumbered
def test_static_cache_equals_dynamic(case, positions):
    """cache_implementation="static", twice: generate() keeps and resets its static cache."""
    model, inputs = model_of(case), inputs_of(case)
    other = inputs_of(case, images=(2, 0, 1), seed=4)
    with vtc.patched(model, "hiprune", keep=0.3, positions=positions):
        for batch in (inputs, other, inputs):
            dynamic = generate(model, batch, 6)
            static = generate(model, batch, 6, cache_implementation="static")
            assert torch.equal(static.tokens, dynamic.tokens)
            torch.testing.assert_close(static.logits, dynamic.logits, atol=1e-9, rtol=0)
        one = generate(model, inputs_of(case, images=(1,)), 6)
        alone = generate(model, inputs_of(case, images=(1,)), 6, cache_implementation="static")
        torch.testing.assert_close(alone.logits, one.logits, atol=1e-9, rtol=0)


@families
def test_reset_static_cache_forgets_the_pruned_prompt(case):
    """A static cache that held a pruned prompt, reset, takes a text of one token as the stock model does."""
    model, inputs = model_of(case), inputs_of(case, images=(1, 1, 1))
    word = {"input_ids": torch.tensor([[5]] * 3), "attention_mask": torch.ones(3, 1, dtype=torch.long)}
    stock = generate(model, word, 4, cache_implementation="static")
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=400)
    with vtc.patched(model, "uniform", keep=0.3):
        generate(model, inputs, 4, past_key_values=cache)
        cache.reset()
        again = generate(model, word, 4, past_key_values=cache)
    assert torch.equal(stock.tokens, again.tokens)
    torch.testing.assert_close(stock.logits, again.logits, atol=1e-9, rtol=0)


@families
def test_two_generations_at_once(case):
    """Two caches of two prompts, their steps taken in turn on one patched model, do not mix."""
    model = model_of(case)
    prompts = [inputs_of(case, images=(1, 2), seed=1), inputs_of(case, images=(2, 0), seed=2)]
    with vtc.patched(model, "hiprune", keep=0.3), torch.no_grad():
        serial = [generate(model, inputs, 5) for inputs in prompts]
        outs = [forward(model, inputs, use_cache=True) for inputs in prompts]
        masks = [inputs["attention_mask"] for inputs in prompts]
        for step in range(4):
            for i, expected in enumerate(serial):
                masks[i] = torch.cat([masks[i], masks[i].new_ones(2, 1)], 1)
                where = {}
                if case in ("llava", "llava_next"):
                    where["position_ids"] = masks[i].sum(1, keepdim=True) - 1
                outs[i] = model(
                    input_ids=expected.tokens[:, step : step + 1], attention_mask=masks[i],
                    past_key_values=outs[i].past_key_values, **where,
                )  # fmt: skip
                torch.testing.assert_close(outs[i].logits[:, -1], expected.logits[step + 1], atol=1e-9, rtol=0)


@families
@renumbered
def test_several_new_tokens_in_one_step(case, positions):
    """Four tokens fed at once after the pruned prompt equal four single steps."""
    model, inputs = model_of(case), inputs_of(case)
    where = {}
    with vtc.patched(model, "hiprune", keep=0.3, positions=positions), torch.no_grad():
        written = generate(model, inputs, 5)
        out = forward(model, inputs, use_cache=True)
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 4, dtype=torch.long)], 1)
        if case in ("llava", "llava_next"):
            where["position_ids"] = (mask.cumsum(1) - 1)[:, -4:]
        out = model(input_ids=written.tokens[:, :4], attention_mask=mask, past_key_values=out.past_key_values, **where)
    torch.testing.assert_close(out.logits.transpose(0, 1), written.logits[1:], atol=1e-9, rtol=0)


@families
def test_given_dynamic_cache_is_filled(case):
    """A DynamicCache that the caller made holds the pruned prompt; reset, it takes the next one."""
    model, inputs, text = model_of(case), inputs_of(case), inputs_of(case, images=(0, 0))
    stock = generate(model, text, 4)
    cache = DynamicCache(config=model.config.get_text_config())
    with vtc.patched(model, "uniform", keep=0.3):
        first = generate(model, inputs, 4, past_key_values=cache)
        assert cache.get_seq_length() == vtc.report(model).kv_lengths[0] + 3
        fresh = DynamicCache(config=model.config.get_text_config())
        assert torch.equal(generate(model, inputs, 4, past_key_values=fresh).tokens, first.tokens)
        fresh = DynamicCache(config=model.config.get_text_config())
        assert torch.equal(generate(model, text, 4, past_key_values=fresh).logits, stock.logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads a cache through a CUDA stream")
def test_offloaded_cache_equals_dynamic():
    """cache_implementation="offloaded" writes the same tokens."""
    model = model_of("llava").to("cuda")
    inputs = {k: v.to("cuda") for k, v in inputs_of("llava").items()}
    try:
        with vtc.patched(model, "uniform", keep=0.3):
            dynamic = generate(model, inputs, 4)
            offloaded = generate(model, inputs, 4, cache_implementation="offloaded")
        assert torch.equal(dynamic.tokens, offloaded.tokens)
    finally:
        model.to("cpu")
