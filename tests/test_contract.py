"""The contract of every strategy on every family: counts, order, determinism, batches, padding, removal, the report."""

import pytest
import torch

import vtc
from tests.helpers import (
    CASES,
    IMAGES,
    READERS,
    STRATEGIES,
    Words,
    check_no_trace,
    family_of,
    forward,
    generate,
    inputs_of,
    model_of,
    patched,
    spy,
    state,
    subject_of,
)
from vtc.check import behaviour, choices
from vtc.patching import find_family

pytestmark = pytest.mark.product

both = pytest.mark.parametrize("strategy", STRATEGIES)
cases = pytest.mark.parametrize("case", CASES)
BUDGETS = [0.3, 7]


def layouts(case, inputs):
    """The layout of each image of a batch."""
    return find_family(model_of(case)).layouts(inputs)


def grouped(items, images=IMAGES):
    """A flat list per image as a list per prompt."""
    rest = iter(items)
    return [[next(rest) for _ in range(n)] for n in images]


@both
@cases
@pytest.mark.parametrize("keep", BUDGETS)
def test_count_is_the_budgets(strategy, case, keep):
    """Each image keeps what the budget function says; methods that may stay below it do so unless told otherwise."""
    model, inputs = model_of(case), inputs_of(case)
    config = vtc.load_strategy(strategy, family_of(case), keep=keep)
    sizes = [[[t.tokens for t in layout.tiles] for layout in prompt] for prompt in grouped(layouts(case, inputs))]
    expected = [sum(counts) for prompt in sizes for counts in config.allocate().projector.quotas(prompt)]
    with patched(model, strategy, keep=keep):
        forward(model, inputs)
        found = [image.after for image in vtc.report(model).images]
    stage = config.stages[0].stage
    if stage.adaptive:
        assert all(1 <= f <= e for f, e in zip(found, expected, strict=True))
        return
    if any(getattr(stage, knob) != value for knob, value in stage.fixed_count.items()):
        assert all(f <= e for f, e in zip(found, expected, strict=True))
        with patched(model, strategy, keep=keep, **stage.fixed_count):
            forward(model, inputs)
            found = [image.after for image in vtc.report(model).images]
    assert found == expected


@both
@cases
def test_kept_is_ascending_unique_and_deterministic(strategy, case):
    """Kept places ascend strictly, lie inside the image, and are the same in a second run."""
    subject = subject_of(strategy, case, keep=0.3)
    choices.order(subject)
    behaviour.deterministic(subject)
    for image in subject.run().report.images:
        assert len(image.kept) == image.after
        assert bool((image.kept[1:] > image.kept[:-1]).all())
        assert 0 <= int(image.kept[0]) <= int(image.kept[-1]) < image.before


@both
@cases
def test_batched_equals_one_by_one(strategy, case):
    """Each prompt alone, without padding, keeps the same tokens and gives the same last logits as in the batch."""
    behaviour.batch(subject_of(strategy, case, keep=0.3), near=1e-9)


@both
@cases
@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_is_never_kept(strategy, case, padding):
    """The packed mask counts exactly the real tokens left, and what stays are the text tokens in their order."""
    model, inputs = model_of(case), inputs_of(case, padding=padding)
    words = model.get_input_embeddings()
    table = words(torch.arange(words.num_embeddings)).detach()
    with patched(model, strategy, keep=0.3), spy(model) as seen:
        forward(model, inputs)
        report = vtc.report(model)
    mask, embeds = seen[0]["attention_mask"], seen[0]["inputs_embeds"]
    real = inputs["attention_mask"].sum(1).tolist()
    removed = [sum(i.before - i.after for i in report.images if i.prompt == b) for b in range(len(real))]
    after = [n - r for n, r in zip(real, removed, strict=True)]
    found = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    assert found.sum(1).tolist() == after == report.prompts_after
    assert report.prompts_before == real
    assert embeds.shape[1] == max(after)
    for b in range(len(real)):
        text = inputs["input_ids"][b][inputs["attention_mask"][b].bool()]
        text = text[text != model.config.image_token_id]
        packed = embeds[b][found[b]]
        is_text = (packed[:, None] == table[text].unique(dim=0)[None]).all(-1).any(-1)
        assert torch.equal(packed[is_text], table[text])


@both
@cases
def test_keep_all_and_removal_leave_no_trace(strategy, case):
    """keep=1.0 and a removed patch are bit-equal to the stock model, and nothing is left on any module or config."""
    check_no_trace(model_of(case), inputs_of(case), strategy, keep=0.3)


@both
@cases
def test_last_patch_alone_counts(strategy, case):
    """Patching twice is the last patch alone, and one removal is enough."""
    model, inputs = model_of(case), inputs_of(case)
    before = state(model)
    with patched(model, strategy, keep=0.3):
        once = forward(model, inputs).logits
    vtc.patch(model, "random", keep=0.6, seed=5)
    forward(model, inputs)
    vtc.patch(model, strategy, processor=Words(), keep=0.3)
    assert torch.equal(forward(model, inputs).logits, once)
    vtc.unpatch(model)
    assert state(model) == before


@both
@cases
def test_cached_decode_equals_recomputation(strategy, case):
    """Greedy steps on the pruned cache give the logits of full forwards over prompt plus text so far."""
    behaviour.decoding(subject_of(strategy, case, keep=0.3), near=1e-9)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in READERS])
@cases
def test_without_a_cache_the_same_is_written(strategy, case):
    """use_cache=False gives the tokens and logits that the pruned cache gives."""
    model, inputs = model_of(case), inputs_of(case)
    with patched(model, strategy, keep=0.3):
        cached = generate(model, inputs, 9)
        plain = generate(model, inputs, 9, use_cache=False)
    if not torch.equal(cached.tokens, plain.tokens):
        stock = [generate(model, inputs, 9, use_cache=use).tokens for use in (True, False)]
        if not torch.equal(*stock):
            pytest.skip("the stock model writes something else without a cache: its generate() drops the pictures")
    assert torch.equal(cached.tokens, plain.tokens)
    torch.testing.assert_close(cached.logits, plain.logits, atol=1e-9, rtol=0)


@both
@cases
def test_text_only_prompts_are_untouched(strategy, case):
    """Prompts without images go through a patched model bit-equal, forward and generate."""
    model, inputs = model_of(case), inputs_of(case, images=(0, 0))
    assert "pixel_values" not in inputs
    stock, written = forward(model, inputs).logits, generate(model, inputs, 4).tokens
    with patched(model, strategy, keep=0.3):
        assert torch.equal(forward(model, inputs).logits, stock)
        assert torch.equal(generate(model, inputs, 4).tokens, written)
