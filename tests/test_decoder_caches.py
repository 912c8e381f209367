"""Caches whose layers have different lengths: every kind of cache and of generation."""

import copy

import pytest
import torch
from transformers import DynamicCache, MistralConfig, StaticCache, cache_utils

import vtc
from tests.helpers import HYBRIDS, SPECIAL, build, forward, generate, inputs_of, model_of, proceed, split
from tests.helpers_decoder import entered_of, exact, on, options_of, resolved, truths
from vtc.check.batch import cached_lengths
from vtc.patches import FAMILIES
from vtc.patches._tiny import TEXT

pytestmark = pytest.mark.product

# One drop without renumbering; several with history; a projector's stage, merging and an order of its own.
both = pytest.mark.parametrize("strategy", ["fastv", "transprune", "visiondrop"])
families = pytest.mark.parametrize("case", vtc.families())
renumbered = pytest.mark.parametrize("positions", ["keep", "compact"])
WINDOW = 24


@both
@families
def test_static_cache_again_and_again(strategy, case):
    """cache_implementation="static" with other batches in between: generate() keeps and resets its static cache."""
    model, inputs, other = model_of(case), inputs_of(case), inputs_of(case, images=(2, 0, 1), seed=4)
    with on(model, strategy):
        for batch in (inputs, other, inputs_of(case, images=(0, 0)), inputs):
            dynamic = generate(model, batch, 6)
            static = generate(model, batch, 6, cache_implementation="static")
            assert torch.equal(static.tokens, dynamic.tokens)
            torch.testing.assert_close(static.logits, dynamic.logits, atol=1e-9, rtol=0)


@pytest.mark.parametrize("strategy", ["hiprune", "fastv", "transprune", "hiprune+pyramiddrop"])
@families
def test_a_static_cache_has_no_room_for_dropped_tokens(strategy, case):
    """Each layer's buffer is as long as what it keeps and the answer; a cache for several answers stays as it is."""
    model, inputs, longer = build(case), inputs_of(case, images=(2,)), inputs_of(case, images=(3,))
    with on(model, strategy):
        dynamic = generate(model, inputs, 6)
        lengths = [n for n in vtc.report(model).kv_lengths if n is not None]
        static = generate(model, inputs, 6, cache_implementation="static")
        if hasattr(model, "_cache"):
            pytest.skip("this transformers keeps the static cache of generate() for later calls")
        long = generate(model, longer, 6, cache_implementation="static").output.past_key_values
        again = generate(model, inputs, 6, cache_implementation="static")
        whole = generate(model, inputs, 6, cache_implementation="static", max_cache_len=500)
    for found in (static, again, whole):
        assert torch.equal(found.tokens, dynamic.tokens)
        torch.testing.assert_close(found.logits, dynamic.logits, atol=1e-9, rtol=0)
    first, second, third, last = (
        [layer.keys.shape[2] for layer in cache.layers if hasattr(layer, "keys")]
        for cache in (static.output.past_key_values, long, again.output.past_key_values, whole.output.past_key_values)
    )
    if not any(getattr(layer, "is_sliding", False) for layer in long.layers):
        assert [size - n for size, n in zip(first, lengths, strict=True)] == [5] * len(lengths)  # the last is not read
        assert third == second > first
        assert {*last} == {500}


@both
@families
def test_given_static_cache_is_reset_and_reused(strategy, case):
    """The caller's StaticCache, filled, reset, filled again, and at last with text alone as the stock model does it."""
    model, inputs, text = model_of(case), inputs_of(case), inputs_of(case, images=(0, 0, 0))
    stock = generate(model, text, 4, cache_implementation="static")
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=400)
    with on(model, strategy):
        expected = generate(model, inputs, 4)
        for _ in range(2):
            found = generate(model, inputs, 4, past_key_values=cache)
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-9, rtol=0)
            cache.reset()
        again = generate(model, text, 4, past_key_values=cache)
    torch.testing.assert_close(again.logits, stock.logits, atol=1e-9, rtol=0)


@both
@families
def test_given_dynamic_cache_is_filled(strategy, case):
    """A DynamicCache that the caller made, and a deep copy of it, which continues by itself."""
    model, inputs = model_of(case), inputs_of(case, images=(1, 2))
    cache = DynamicCache(config=model.config.get_text_config())
    with on(model, strategy), torch.no_grad():
        expected = generate(model, inputs, 4)
        forward(model, inputs, past_key_values=cache, use_cache=True)
        lengths = vtc.report(model).kv_lengths
        assert len(set(lengths)) > 1
        for past in (copy.deepcopy(cache), cache):
            mask = inputs["attention_mask"]
            for step in range(3):
                out, mask = proceed(model, past, mask, expected.tokens[:, step : step + 1])
                torch.testing.assert_close(out.logits[:, -1], expected.logits[step + 1], atol=1e-9, rtol=0)
            assert cached_lengths(past) == [n if n is None else n + 3 for n in lengths]


@both
@families
def test_beam_search_equals_each_prompt_alone(strategy, case):
    """Three beams of a batch are the beams of each prompt."""
    model, images = model_of(case), (1, 1)
    inputs = inputs_of(case, images=images)
    with on(model, strategy):
        together = generate(model, inputs, 6, num_beams=3, num_return_sequences=2).tokens
        alone = [generate(model, one, 6, num_beams=3, num_return_sequences=2).tokens for one in split(inputs, images)]
    assert torch.equal(together, torch.cat(alone))


@pytest.fixture(scope="module")
def sliding():
    """LLaVA with a Mistral whose window is shorter than the pruned prompts."""
    model = FAMILIES["llava"].tiny(text=MistralConfig(**TEXT, **SPECIAL, sliding_window=WINDOW)).double()
    with torch.no_grad():
        model(**inputs_of("llava"), output_hidden_states=True)
    return model


@both
@renumbered
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_sliding_window_equals_oracle(strategy, sliding, positions, cache):
    """The window of each layer counts the tokens that are left in it."""
    inputs, options = inputs_of("llava"), options_of(strategy, positions=positions)
    config = resolved(strategy, "llava", **options)
    with vtc.patched(sliding, strategy, **options):
        out = generate(sliding, inputs, 12, **({} if cache == "dynamic" else {"cache_implementation": "static"}))
        report, entered = vtc.report(sliding), entered_of(sliding, inputs, config)
    assert max(image.before for image in report.images) > WINDOW
    for b, answer in enumerate(truths(sliding, split(inputs), report, config, entered, 12, out.tokens)):
        torch.testing.assert_close(out.logits[:, b], answer.logits[-12:], atol=exact(strategy), rtol=0)
        assert out.tokens[b].tolist() == answer.tokens


def quantized(backend):
    """The options of generate() for a quantized cache, or a skip with its reason."""
    if backend == "fp8" and not hasattr(cache_utils, "Fp8QuantizedLayer"):
        pytest.skip("this transformers has no cache of 8-bit floats")
    if backend != "fp8":
        package = {"quanto": "optimum.quanto", "hqq": "hqq"}[backend]
        pytest.importorskip(package, reason=f"transformers' {backend} cache needs the package {package}")
    sizes = {} if backend == "fp8" else {"q_group_size": 16}
    return {"cache_implementation": "quantized", "cache_config": {"backend": backend, **sizes}}


@pytest.mark.parametrize("backend", ["fp8", "quanto", "hqq"])
@both
@families
def test_quantized_cache(strategy, case, backend):
    """The first token is exact, the next are as near to the dynamic cache's as without a patch (8 bits: about 0.01)."""
    options = quantized(backend)
    if case in HYBRIDS:
        pytest.skip("transformers has no quantized cache for layers of linear attention")
    model, inputs = build(case, torch.float32), inputs_of(case, dtype=torch.float32)
    with on(model, strategy):
        dynamic, rounded = generate(model, inputs, 3), generate(model, inputs, 3, **options)
    assert torch.equal(rounded.logits[0], dynamic.logits[0])
    assert torch.equal(rounded.tokens, dynamic.tokens)
    torch.testing.assert_close(rounded.logits, dynamic.logits, atol=0.05, rtol=0)
    assert not torch.equal(rounded.logits, dynamic.logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads a cache through a CUDA stream")
@both
def test_offloaded_cache_equals_dynamic(strategy):
    """cache_implementation="offloaded" writes the same tokens."""
    model = build("llava").to("cuda")
    inputs = {k: v.to("cuda") for k, v in inputs_of("llava").items()}
    with on(model, strategy):
        dynamic = generate(model, inputs, 4)
        assert torch.equal(generate(model, inputs, 4, cache_implementation="offloaded").tokens, dynamic.tokens)
