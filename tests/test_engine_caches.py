"""Caches of every kind: static ones, reused and reset ones, and those that the user fills by hand."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

import vtc
from tests.helpers import CASES, forward, generate, inputs_of, model_of, proceed
from tests.helpers_decoder import on

pytestmark = pytest.mark.product

families = pytest.mark.parametrize("case", vtc.families())
# At the projector; one drop without renumbering; several with history; both sites, merging and an order of its own.
everywhere = pytest.mark.parametrize("strategy", ["hiprune", "fastv", "transprune", "visiondrop"])
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


@everywhere
@families
def test_two_generations_at_once(strategy, case):
    """Two caches of two prompts, their steps taken in turn on one patched model, do not mix."""
    model = model_of(case)
    prompts = [inputs_of(case, images=(1, 2), seed=1), inputs_of(case, images=(2, 0), seed=2)]
    with on(model, strategy):
        serial = [generate(model, inputs, 5) for inputs in prompts]
        caches = [forward(model, inputs, use_cache=True).past_key_values for inputs in prompts]
        masks = [inputs["attention_mask"] for inputs in prompts]
        for step in range(4):
            for i, expected in enumerate(serial):
                out, masks[i] = proceed(model, caches[i], masks[i], expected.tokens[:, step : step + 1])
                torch.testing.assert_close(out.logits[:, -1], expected.logits[step + 1], atol=1e-9, rtol=0)


@everywhere
@families
@renumbered
def test_several_new_tokens_in_one_step(strategy, case, positions):
    """Four tokens fed at once after the pruned prompt, and then three more, equal single steps."""
    model, inputs = model_of(case), inputs_of(case)
    with on(model, strategy, positions=positions):
        written = generate(model, inputs, 8)
        cache, mask = forward(model, inputs, use_cache=True).past_key_values, inputs["attention_mask"]
        four, mask = proceed(model, cache, mask, written.tokens[:, :4])
        three, mask = proceed(model, cache, mask, written.tokens[:, 4:7])
    found = torch.cat([four.logits, three.logits], 1).transpose(0, 1)
    torch.testing.assert_close(found, written.logits[1:], atol=1e-9, rtol=0)


@families
def test_given_dynamic_cache_is_filled(case):
    """A DynamicCache that the caller made holds the pruned prompt; reset, it takes the next one."""
    model, inputs, text = model_of(case), inputs_of(case), inputs_of(case, images=(0, 0))
    stock = generate(model, text, 4)
    cache = DynamicCache(config=model.config.get_text_config())
    with vtc.patched(model, "uniform", keep=0.3):
        first = generate(model, inputs, 4, past_key_values=cache)
        length = max(n for n in vtc.report(model).kv_lengths if n is not None)
        assert cache.get_seq_length() == length + 3
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
