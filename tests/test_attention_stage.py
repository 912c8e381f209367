"""A stage that changes attention (var), against an eager oracle that computes whole matrices of every layer anew."""

from contextlib import contextmanager

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vtc
from tests.helpers import (
    HYBRIDS,
    IMAGE_TOKEN,
    IMAGES,
    build,
    forward,
    generate,
    inputs_of,
    model_of,
    patched,
    refused,
    split,
    state,
    unharmed,
)  # fmt: skip
from tests.helpers_attention import LOW, STEPS, expected
from tests.helpers_decoder import drops_of, entered_of, resolved
from vtc.check.batch import padded
from vtc.cli.schedule import table
from vtc.core.signals import Decoder
from vtc.engine import rewriting
from vtc.patching import find_family
from vtc.vllm.capability import _misfit

pytestmark = pytest.mark.product

families = pytest.mark.parametrize("case", [name for name in vtc.families() if name not in HYBRIDS])
strategies = pytest.mark.parametrize("strategy", ["var", "hiprune+var", "fastv+var"])


@families
@strategies
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_equals_the_oracle(case, strategy, cache):
    """Batched, left-padded, cached generation after any drop gives each prompt's own tokens and logits."""
    options = {**LOW, **({"K": 3} if "fastv" in strategy else {})}  # between layers that are changed
    model, inputs, config = model_of(case), inputs_of(case), resolved(strategy, case, **options)
    with patched(model, strategy, **options):
        out = generate(model, inputs, STEPS, **({} if cache == "dynamic" else {"cache_implementation": "static"}))
        report, entered = vtc.report(model), entered_of(model, inputs, config)
    for b, single in enumerate(split(inputs, IMAGES)):
        drops = drops_of(report, b, config)
        truth_, changed = expected(
            model, single, drops, config, None if entered is None else entered[b], out.tokens[b].tolist()
        )
        torch.testing.assert_close(out.logits[:, b], truth_.logits[-STEPS:], atol=1e-9, rtol=0)
        assert out.tokens[b].tolist() == truth_.tokens
        assert changed or not IMAGES[b]
    assert [change.layer for change in report.attention] == [2, 3, 4]
    assert any(bool(change.changed.any()) for change in report.attention)


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_what_its_prompts_give(case, side):
    """Each prompt has sinks and dimensions of its own; padding is neither sink nor first token."""
    model, inputs = model_of(case), padded(inputs_of(case), side)
    with patched(model, "var", **LOW):
        logits, report = forward(model, inputs).logits, vtc.report(model)
        for b, single in enumerate(split(inputs, IMAGES)):
            alone = forward(model, single).logits[0]
            real = slice(-len(alone), None) if side == "left" else slice(len(alone))
            torch.testing.assert_close(logits[b, real], alone, atol=1e-9, rtol=0)
            own = vtc.report(model)
            for change, one in zip(report.attention, own.attention, strict=bool(IMAGES[b])):
                assert (change.rows[b], int(change.changed[b])) == (one.rows[0], int(one.changed[0]))
                assert int(change.marked[b]) == int(one.marked[0])


def fake_flash(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
    """A flash-style backend for CPUs: no mask or a 2-D one, causal from the last column back."""
    total, new = key.shape[2], query.shape[2]
    seen = torch.ones(new, total, dtype=torch.bool).tril(total - new)[None, None]
    if attention_mask is not None:
        itself = torch.eye(total, dtype=torch.bool)[-new:]  # padding is to have a softmax, too
        seen = seen & attention_mask[:, None, None, :total].bool() | itself
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, seen, scale=scaling, enable_gqa=True).transpose(1, 2), None


@contextmanager
def backend(model, name, function):
    """The text layers with another attention function."""
    config = find_family(model).language_model.config
    before, config._attn_implementation = config._attn_implementation, name
    ALL_ATTENTION_FUNCTIONS.register(name, function)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    try:
        yield
    finally:
        config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name)
        ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.pop(name)


@pytest.mark.parametrize("strategy", ["var", "hiprune+var"])
@families
def test_beside_flash_attention_as_beside_sdpa(case, strategy):
    """Two-dimensional masks and none: the same logits at prefill and in every step."""
    model, inputs = model_of(case), inputs_of(case)
    with patched(model, strategy, **LOW):
        plain = generate(model, inputs, STEPS).logits
        with backend(model, "tests_flash_attention_2", fake_flash):
            torch.testing.assert_close(generate(model, inputs, STEPS).logits, plain, atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", ["llava"])
def test_beside_eager_attention(case):
    """The weights that eager attention gives out are the changed ones, and their rows still sum to 1."""
    model, inputs = build(case, torch.float32), inputs_of(case, (1,), torch.float32)
    with patched(model, "var", **LOW):
        plain = forward(model, inputs).logits
        model.set_attn_implementation("eager")
        out = forward(model, inputs, output_attentions=True)
    torch.testing.assert_close(out.logits, plain, atol=1e-5, rtol=0)
    stock = forward(model, inputs, output_attentions=True).attentions
    assert torch.equal(out.attentions[1], stock[1])
    assert not torch.allclose(out.attentions[2], stock[2], atol=1e-3)
    torch.testing.assert_close(out.attentions[2].sum(-1), stock[2].sum(-1), atol=1e-5, rtol=0)


def test_other_rows_and_heads_keep_the_backends_output(monkeypatch):
    """Bit-equal where nothing changed; and rows a few at a time give what all of them give."""
    stage = resolved("var", "llava", min_nonsink_share=0.8).attention.stage
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, 12, 8, generator=generator) for n in (4, 2, 2))
    marks = rewriting.Marks(torch.zeros(2, 12, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool))
    marks.visual[:, 2:8], marks.marked[:, [0, 3]] = True, True
    options, out = {"backend": "sdpa", "scaling": 0.5}, (torch.zeros(2, 12, 4, 8), None)
    rows = [torch.arange(8, 12), torch.arange(9, 12)]

    def run():
        call = rewriting.Attended(query, key, value, None, options, 12)
        return rewriting.rewrite(stage, call, marks, rows, out)

    (found, _), counts = run()
    written = (found != 0).any(-1)
    assert written.sum((1, 2)).tolist() == counts.tolist()
    assert 0 < int(counts[0]) < 16
    assert not written[0, :8].any()
    assert not written[1, :9].any()
    sizes, change = [], type(stage).change

    def noted(self, attention, *args):
        sizes.append(attention.numel())
        return change(self, attention, *args)

    monkeypatch.setattr(type(stage), "change", noted)
    monkeypatch.setattr(rewriting, "ENTRIES", 2 * 4 * 12)
    (again, _), same = run()
    torch.testing.assert_close(again, found)
    assert same.tolist() == counts.tolist()
    assert max(sizes) == 2 * 4 * 12


@families
def test_nothing_is_left_on_the_model(case):
    """keep=1.0 and a removed patch are bit-equal to the stock model; var itself is not."""
    model, inputs = model_of(case), inputs_of(case)
    with unharmed(model, inputs) as stock:
        with patched(model, "var", **LOW, keep=1.0):
            assert torch.equal(forward(model, inputs).logits, stock)
        with patched(model, "var", **LOW):
            changed = forward(model, inputs).logits
            generate(model, inputs, 2)
    assert changed.shape == stock.shape
    assert not torch.allclose(changed, stock)


def test_without_sinks_the_model_is_as_it_was():
    """No token reaches tau: every bit of the stock model's output stays."""
    model, inputs = model_of("llava"), inputs_of("llava")
    stock = forward(model, inputs).logits
    with patched(model, "var", tau=1000.0):
        assert torch.equal(forward(model, inputs).logits, stock)


@pytest.mark.parametrize(
    "preset, moved, nonsink, last, marked",
    [
        ("paper-general", 0.6, 0.8, False, True), ("paper-hallucination", 0.6, 0.5, False, True),
        ("paper-vision-centric", 0.6, 0.9, False, True), ("released-config", 0.4, 0.5, True, False),
    ],
)  # fmt: skip
def test_presets(preset, moved, nonsink, last, marked):
    """Values, the last layer, a token exactly at tau, and a layer without a visual sink."""
    stage = resolved("var", "llava", preset=preset, tau=2.0, dimensions=[0]).attention.stage
    assert stage.shares == (moved, nonsink)
    assert stage.layers(Decoder("llava", 32), 64) == tuple(range(2, 32 if last else 31))
    hidden = torch.tensor([2.0, 0.0, 0.0, 0.0]).double()[None, None] * 1e6
    assert bool(stage.mark(hidden * 1.0, torch.zeros(1, dtype=torch.long), Decoder("llava", 32))) is marked or not last
    sinks, visual = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    attention = torch.tensor([0.5, 0.2, 0.3])[None, None, None]
    new, changed = stage.change(attention, sinks, visual)
    assert bool(changed) is (preset != "released-config")
    if changed:
        kept = 0.5 * (1 - moved)
        torch.testing.assert_close(new[0, 0, 0], torch.tensor([kept, (1 - kept) * 0.4, (1 - kept) * 0.6]))


def test_nothing_moves_where_every_visual_token_is_a_sink():
    """There is nowhere to move it to, whatever share is asked."""
    stage = resolved("var", "llava", min_nonsink_share=0.0).attention.stage
    attention, visual = torch.tensor([0.5, 0.2, 0.3])[None, None, None], torch.tensor([[False, True, True]])
    new, changed = stage.change(attention, torch.ones_like(visual), visual)
    assert torch.equal(new, attention)
    assert not changed.any()


def test_dimensions_of_known_models_and_of_the_first_token():
    stage, first = resolved("var", "llava").attention.stage, torch.tensor([0])
    hidden = torch.ones(1, 3, 4096)
    hidden[0, 0, 7], hidden[0, 1, 2533], hidden[0, 2, 7] = 300.0, 300.0, 300.0
    assert stage.mark(hidden, first, Decoder("llava", 32)).tolist() == [[False, True, False]]
    assert stage.mark(hidden, first, Decoder("llava", 28)).tolist() == [[True, False, True]]
    assert stage.mark(hidden, torch.tensor([1]), Decoder("llava", 28)).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    "strategy, options, words",
    [
        ("var", {"keep": 0.5}, ["keep=0.5", "drops nothing", "hiprune+var"]),
        ("hiprune+var", {"var.keep": 0.5}, ["drops nothing"]),
        ("var+var", {}, ["at most one that changes attention"]),
        ("var+hiprune", {}, ["at most one that changes attention"]),
        ("var", {"dimensions": [64]}, ["dimensions=[64]", "0 to 63"]),
        ("var", {"dimensions": [-1]}, ["dimensions=[-1]"]),
        ("var", {"move_fraction": 1.5}, ["move_fraction=1.5", "[0, 1]"]),
        ("var", {"tau": 0.0}, ["tau=0.0"]),
        ("var", {"discovered": 0}, ["discovered=0"]),
        ("var", {"preset": "paper"}, ["preset='paper'", "released-config"]),
        ("var", {"first_layer": 9}, ["first_layer=9"]),
    ],
)
def test_refused_before_the_model_is_touched(strategy, options, words):
    model = model_of("llava")
    before = state(model)
    refused(lambda: vtc.patch(model, strategy, **options), *words)
    assert state(model) == before


def test_refused_while_it_runs():
    """Backends whose masks are not known, dropout, and a cache that another patch filled."""
    model, inputs = model_of("llava"), inputs_of("llava", (1,))
    with patched(model, "var", **LOW):
        with backend(model, "tests_unheard_of", fake_flash):
            refused(lambda: forward(model, inputs), "tests_unheard_of", "sdpa, eager, or flash")
        cache = forward(model, inputs, use_cache=True).past_key_values
    token = inputs["input_ids"][:, :1]
    for strategy, options in (("uniform", {"keep": 0.5}), ("var", {"tau": 1.0})):
        with patched(model, strategy, **options):
            refused(lambda: model(input_ids=token, past_key_values=cache), "another patch", "changes of attention")
    for name in ("llava", "qwen2_vl"):
        _, why = _misfit(resolved("hiprune+var", name), find_family(model_of(name)).encoder)
        assert "changes the attention of the language model (var)" in why
    query = torch.zeros(1, 2, 4, 8)
    for options, ends in (({"dropout": 0.1}, 4), ({}, 5)):
        refused(lambda o=options, n=ends: rewriting.Attended(query, query, query, None, {"backend": "sdpa", **o}, n))


def test_the_report_and_show():
    """Layers, sinks and rows are told; a schedule says where attention changes."""
    model, inputs = model_of("llava"), inputs_of("llava")
    with patched(model, "hiprune+var", keep=0.5, **LOW):
        generate(model, inputs, 2)
        report = vtc.report(model)
    rows = [change["rows"] for change in report.to_dict()["attention"]]
    text = [
        int((row[(row == IMAGE_TOKEN).nonzero()[0, 0] :] != IMAGE_TOKEN).sum()) * 4 if IMAGE_TOKEN in row else 0
        for row in inputs["input_ids"]
    ]
    assert rows == [text] * 3
    assert "rows by var (heads x text after an image, layers 2-4), in " in str(report)
    lines = table(resolved("hiprune+var", "llava", keep=0.5), "llava", 32, 576)
    assert any("var changes attention in layers 2-30, and drops nothing" in line for line in lines)


def test_gradients_reach_what_is_changed():
    """The moved attention is differentiable: a token that no other path reaches gets a gradient through the sum."""
    stage = resolved("var", "llava", **LOW).attention.stage
    attention = torch.tensor([0.3, 0.3, 0.4], requires_grad=True)
    sinks, visual = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    new, _ = stage.change(attention[None, None, None], sinks, visual)
    new[..., 1].sum().backward()
    assert float(attention.grad[0]) > 0
