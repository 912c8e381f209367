"""Drops inside the language model against an oracle that gathers nothing, caches nothing and runs each prompt alone."""

import dataclasses
import functools

import pytest
import torch
from torch.nn.functional import cross_entropy

import vtc
from tests.helpers import CASES, IMAGES, INSIDE, build, forward, generate, inputs_of, model_of, patched, split
from tests.helpers_decoder import Drop, drops_of, entered_of, exact, options_of, resolved, truth, truths
from tests.helpers_oracle import layouts

pytestmark = pytest.mark.product

both = pytest.mark.parametrize("strategy", INSIDE)
QUICK = ("fastv", "transprune", "sparsevlm", "autoprune")
most = pytest.mark.parametrize(
    "strategy", [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in INSIDE]
)
cases = pytest.mark.parametrize("case", CASES)
families = pytest.mark.parametrize("case", vtc.families())
renumbered = pytest.mark.parametrize("positions", ["keep", "compact"])
STEPS = 16


def answers(model, inputs, strategy, case, images=IMAGES, steps=STEPS, options=None, **generation):
    """A generation on the patched model, its report, and the oracle's answer for each of its prompts."""
    options = options_of(strategy, **(options or {}))
    config = resolved(strategy, case, **options)
    with patched(model, strategy, **options):
        out = generate(model, inputs, steps, **generation)
        report = vtc.report(model)
        entered = entered_of(model, inputs, config)
    return out, report, truths(model, split(inputs, images), report, config, entered, steps, out.tokens)


@functools.lru_cache(maxsize=4)
def batch(strategy, case, positions):
    """The left-padded batch of three prompts that several tests look at."""
    return answers(model_of(case), inputs_of(case), strategy, case, options={"positions": positions})


def agree(out, expected, tolerance, steps=STEPS):
    """Each prompt's tokens and the logits of each step are the oracle's."""
    for b, answer in enumerate(expected):
        torch.testing.assert_close(out.logits[:, b], answer.logits[-steps:], atol=tolerance, rtol=0)
        assert out.tokens[b].tolist() == answer.tokens


def test_the_methods_inside_are_tested():
    """The tests below run for every strategy with a stage inside the language model; these four are among them."""
    assert {"transprune", "fastv", "pyramiddrop", "visiondrop"} <= set(INSIDE)


@pytest.mark.parametrize("strategy", [*INSIDE, "visionzip", "recoverable", "prunesid", "visiontrim"])
@cases
@renumbered
def test_generate_equals_oracle(strategy, case, positions):
    """Batched, left-padded, cached generation gives each prompt's own tokens and logits; something was dropped."""
    out, report, expected = batch(strategy, case, positions)
    agree(out, expected, exact(strategy))
    assert all(image.after < image.before for image in report.images)
    assert [len(answer.places) for answer in expected] == report.prompts_after


@most
@cases
@renumbered
def test_static_cache_equals_oracle(strategy, case, positions):
    """The same in a static cache, whose layers are all of one size."""
    _, report, expected = batch(strategy, case, positions)
    model, inputs = model_of(case), inputs_of(case)
    with patched(model, strategy, **options_of(strategy, positions=positions)):
        out = generate(model, inputs, STEPS, cache_implementation="static")
        same = vtc.report(model)
    for image, other in zip(report.images, same.images, strict=True):
        assert torch.equal(image.kept, other.kept)
    agree(out, expected, exact(strategy))


@both
@cases
@pytest.mark.parametrize("padding", ["left", "right"])
def test_forward_equals_oracle(strategy, case, padding):
    """Every real column that is left, visual tokens included, has the oracle's logits; padding stays on its side."""
    model, inputs, config = (
        model_of(case),
        inputs_of(case, padding=padding),
        resolved(strategy, case, **options_of(strategy)),
    )
    with patched(model, strategy, **options_of(strategy)):
        logits = forward(model, inputs).logits
        report = vtc.report(model)
        entered = entered_of(model, inputs, config)
    expected = truths(model, split(inputs), report, config, entered)
    assert logits.shape[1] == max(len(answer.places) for answer in expected)
    for b, answer in enumerate(expected):
        real = slice(-len(answer.places), None) if padding == "left" else slice(len(answer.places))
        torch.testing.assert_close(logits[b, real], answer.logits, atol=exact(strategy), rtol=0)


@most
@families
@renumbered
def test_mixed_batch_equals_oracle(strategy, case, positions):
    """A prompt without images, one with three and one with one, in one batch."""
    model, images = model_of(case), (0, 3, 1)
    inputs = inputs_of(case, images=images)
    out, _, expected = answers(model, inputs, strategy, case, images, options={"positions": positions})
    agree(out, expected, exact(strategy))


COMPOSED = [(["hiprune", "transprune"], {}), (["uniform", "fastv"], {}), (["hiprune", "transprune"], {"keep": 0.2})]


@pytest.mark.parametrize("strategy, options", COMPOSED, ids=["hiprune+transprune", "uniform+fastv", "keep"])
@families
@renumbered
def test_composition_equals_oracle(strategy, options, case, positions):
    """A stage at the projector and one inside the language model."""
    options = {**options, "positions": positions}
    out, report, expected = answers(model_of(case), inputs_of(case), strategy, case, options=options)
    agree(out, expected, 1e-9)
    for image in report.images:
        assert [step.stage for step in image.steps][:2] == strategy
        assert [step.layer is None for step in image.steps] == [True] + [False] * (len(image.steps) - 1)


@pytest.mark.parametrize("pair", [("uniform", "fastv"), ("fastv", "pyramiddrop")], ids="+".join)
@pytest.mark.parametrize("first, second", [("keep", "compact"), ("compact", "keep")])
@families
def test_stages_with_different_positions_equal_oracle(pair, first, second, case):
    """One stage renumbers and the other does not, at the projector and inside or both inside."""
    options = {f"{pair[0]}.positions": first, f"{pair[1]}.positions": second}
    out, _, expected = answers(model_of(case), inputs_of(case), list(pair), case, options=options)
    agree(out, expected, 1e-9)


@most
@cases
def test_eager_attention_equals_oracle(strategy, case):
    """Eager attention, in a batch of two prompts of one length: in float64 the stock eager attention turns its padding
    rows into NaN, patched or not, so there is none. Its softmax is float32 in any model."""
    model, images = build(case), (2, 2)
    model.set_attn_implementation("eager")
    pair = [inputs_of(case, images=(2,), seed=seed) for seed in (0, 1)]
    inputs = {key: torch.cat([one[key] for one in pair]) for key in pair[0]}
    assert bool(inputs["attention_mask"].all())
    out, _, expected = answers(model, inputs, strategy, case, images)
    agree(out, expected, 1e-6)
    assert model.config._attn_implementation == "eager"


@most
@families
def test_eager_attention_with_padding(strategy, case):
    """In float32 eager attention takes padding: the same tokens are kept and written as with sdpa."""
    model, inputs, found = build(case, torch.float32), inputs_of(case, dtype=torch.float32), []
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        with patched(model, strategy, **options_of(strategy)):
            found.append((generate(model, inputs, 4), [image.kept for image in vtc.report(model).images]))
    (out, kept), (same, again) = found
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    torch.testing.assert_close(out.logits, same.logits, atol=1e-5, rtol=0)


@most
@families
@renumbered
def test_without_a_mask_equals_oracle(strategy, case, positions):
    """A single prompt given without attention_mask, forward and then by hand token by token."""
    model, inputs, config = (
        model_of(case),
        inputs_of(case, images=(2,)),
        resolved(strategy, case, **options_of(strategy, positions=positions)),
    )
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    with patched(model, strategy, **options_of(strategy, positions=positions)), torch.no_grad():
        written = generate(model, inputs, STEPS).tokens
        entered = entered_of(model, inputs, config)
        out = model(**bare, use_cache=True)
        report, logits = vtc.report(model), [out.logits[0]]
        for step in range(STEPS - 1):
            out = model(input_ids=written[:, step : step + 1], past_key_values=out.past_key_values)
            logits.append(out.logits[0])
    (expected,) = truths(model, split(inputs, (2,)), report, config, entered, STEPS, written)
    torch.testing.assert_close(torch.cat(logits), expected.logits, atol=exact(strategy), rtol=0)
    assert written[0].tolist() == expected.tokens


@most
@families
@pytest.mark.parametrize("padding", ["left", "right"])
def test_loss_is_that_of_the_surviving_places(strategy, case, padding):
    """The loss by the oracle: for each prompt alone, next-token cross-entropy between neighbours that are left."""
    model, inputs = model_of(case), inputs_of(case, padding=padding)
    config, ids, mask = resolved(strategy, case, **options_of(strategy)), inputs["input_ids"], inputs["attention_mask"]
    # Only padding would predict a prompt's first token.
    labels = ids.masked_fill((mask.cumsum(1) < 2) | (mask == 0) | (ids == model.config.image_token_id), -100)
    with patched(model, strategy, **options_of(strategy)):
        out = forward(model, inputs, labels=labels)
        report, plain = vtc.report(model), forward(model, inputs).logits
        last = forward(model, inputs, logits_to_keep=3).logits
        entered = entered_of(model, inputs, config)
    assert torch.equal(out.logits, plain)
    # The last columns mean the same in rows that end there, before and after the drops.
    ends = [b for b, n in enumerate(report.prompts_after) if mask[b, -1] and (padding == "left" or n == plain.shape[1])]
    torch.testing.assert_close(last[ends], plain[ends, -3:], atol=1e-12, rtol=0)
    losses = []
    for b, answer in enumerate(truths(model, split(inputs), report, config, entered)):
        target = labels[b][mask[b].bool()][answer.places][1:]
        losses.append(cross_entropy(answer.logits[:-1][target >= 0], target[target >= 0], reduction="none"))
    torch.testing.assert_close(out.loss.double(), torch.cat(losses).mean(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("strategy", ["fastv", "transprune"])
def test_the_oracle_can_fail(strategy, case):
    """One other token kept, other positions, or another layer: the oracle then disagrees by far."""
    model, out, report, expected = model_of(case), *batch(strategy, case, "compact")
    drops, single = drops_of(report, 0, resolved(strategy, case, positions="compact")), split(inputs_of(case))[0]
    last = drops[-1]
    other = sorted(set(drops[-2].kept[0].tolist() if len(drops) > 1 else range(report.images[0].before)))
    instead = next(place for place in other if place not in last.kept[0].tolist())
    changed = torch.cat([last.kept[0][:-1], torch.tensor([instead])]).sort().values
    for wrong in (
        dataclasses.replace(last, kept=[changed]),
        dataclasses.replace(last, compact=False),
        dataclasses.replace(last, layer=last.layer + 1),
    ):
        answer = truth(model, single, [*drops[:-1], wrong], STEPS, None, out.tokens[0].tolist())
        assert float((answer.logits[-STEPS] - expected[0].logits[-STEPS]).abs().max()) > 1e-5


@families
def test_the_oracle_without_drops_is_the_stock_model(case):
    """Nothing dropped, or all kept by two drops: the stock model's tokens and logits. The draft is only a guess."""
    model, inputs = model_of(case), inputs_of(case)
    out = generate(model, inputs, 6)
    for b, single in enumerate(split(inputs)):
        every = [torch.arange(layout.tokens) for layout in layouts(model, single)]
        for drops in ([], [Drop(2, every, False), Drop(4, every, False)]):
            answer = truth(model, single, drops, 6)
            assert answer.tokens == truth(model, single, drops, 6, draft=[5] * 6).tokens == out.tokens[b].tolist()
            torch.testing.assert_close(out.logits[:, b], answer.logits[-6:], atol=1e-12, rtol=0)


@families
@renumbered
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_dropping_every_token_equals_oracle(case, positions, cache):
    """ToDRE's second stage with a threshold that every prompt stays below: no visual token is left."""
    options = {"positions": positions, "tau": 1.0}
    model, inputs = model_of(case), inputs_of(case)
    config = resolved("todre", case, **options)
    with patched(model, "todre", **options):
        out = generate(model, inputs, STEPS, **({} if cache == "dynamic" else {"cache_implementation": "static"}))
        report = vtc.report(model)
    assert [image.after for image in report.images] == [0] * 4
    assert all(image.steps[0].after > 0 for image in report.images)
    agree(out, truths(model, split(inputs), report, config, None, STEPS, out.tokens), 1e-9)
