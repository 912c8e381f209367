"""The contract of every strategy with a stage inside the language model, on every family."""

import functools
import json

import pytest
import torch

import vtc
from tests.helpers import (
    CASES,
    HYBRIDS,
    INSIDE,
    check_no_trace,
    forward,
    generate,
    grow,
    inputs_of,
    model_of,
    patched,
    refused,
    split,
    subject_of,
    unharmed,
)
from tests.helpers_costs import cached_bytes, prompt_flops
from tests.helpers_decoder import decoder_of, options_of, resolved
from tests.helpers_merging import ORDERED
from tests.helpers_oracle import layouts
from vtc.check import behaviour, choices
from vtc.check.batch import cached_lengths
from vtc.core.errors import ConfigError

pytestmark = pytest.mark.product

both = pytest.mark.parametrize("strategy", INSIDE)
cases = pytest.mark.parametrize("case", CASES)
families = pytest.mark.parametrize("case", vtc.families())
DEPTH = 6


def run(strategy, case, inputs=None, **options):
    """One forward with a cache on the patched model, and its report."""
    model, given = model_of(case), options_of(strategy)
    with patched(model, strategy, **given):
        output = forward(model, inputs_of(case) if inputs is None else inputs, use_cache=True, **options)
        return output, vtc.report(model)


def seen_by_layer(image) -> list[int]:
    """Visual tokens of one image that each layer sees, from its steps."""
    found = []
    for layer in range(DEPTH):
        done = [step.after for step in image.steps if step.layer is None or step.layer <= layer]
        found.append(done[-1] if done else image.before)
    return found


def lengths_by_layer(report, inputs) -> list[list[int]]:
    """Real tokens of each prompt that each layer sees."""
    rows = []
    for b, real in enumerate(inputs["attention_mask"].sum(1).tolist()):
        mine = [(image.before, seen_by_layer(image)) for image in report.images if image.prompt == b]
        rows.append([real - sum(before - seen[layer] for before, seen in mine) for layer in range(DEPTH)])
    return rows


@both
@cases
def test_counts_are_the_schedules(strategy, case):
    """Without a keep, each step leaves what the method's own steps and count say, in every image."""
    if strategy == "autoprune":
        pytest.skip("its counts follow the prompt, see test_autoprune.py")
    _, report = run(strategy, case)
    config = resolved(strategy, case, **options_of(strategy))
    decoder = decoder_of(case)
    assert decoder.depth == DEPTH
    drops = config.allocate(decoder).steps
    all_layouts = [layout for single in split(inputs_of(case)) for layout in layouts(model_of(case), single)]
    for image, layout in zip(report.images, all_layouts, strict=True):
        expected, left = [], layout.tokens
        if config.projector is not None:
            ((*counts,),) = config.allocate(decoder).projector.quotas([[tile.tokens for tile in layout.tiles]])
            left = image.steps[0].after if config.projector.stage.adaptive else sum(counts)
            expected = [(config.projector.method, None, layout.tokens, left)]
        for number, stage in enumerate(config.decoder):
            entered = left
            for step in (drop for drop in drops if drop.index == number):
                count = min(left, stage.stage.count(entered, step.share))
                expected.append((stage.method, step.layer, left, count))
                left = count
        assert [(s.stage, s.layer, s.before, s.after) for s in image.steps] == expected
        assert (image.before, image.after) == (layout.tokens, left)


@both
@cases
def test_kept_is_nested_unique_and_inside(strategy, case):
    """Each step keeps places of the step before, each once; they ascend unless the method puts merged ones last."""
    choices.order(subject_of(strategy, case, **options_of(strategy)))
    _, report = run(strategy, case)
    for image in report.images:
        for step in image.steps:
            kept = step.kept.tolist()
            assert step.kept.dtype == torch.long
            assert strategy in ORDERED or kept == sorted(kept)
        assert image.kept.tolist() == sorted(kept)


@both
@cases
def test_deterministic(strategy, case):
    """A second run is bit-equal and keeps the same."""
    behaviour.deterministic(subject_of(strategy, case, **options_of(strategy)))


@both
@cases
def test_batched_equals_one_by_one(strategy, case):
    """Each prompt alone, without padding, keeps the same tokens at each step and gives the same last logits."""
    near = 1e-6 if case in HYBRIDS else 1e-9  # linear attention computes in float32
    behaviour.batch(subject_of(strategy, case, **options_of(strategy)), near=near)


@both
@cases
def test_padding_is_never_looked_at(strategy, case):
    """Whatever ids stand in the padding: the same tokens are kept, and real columns do not change."""
    behaviour.padding(subject_of(strategy, case, **options_of(strategy)), near=1e-12)


@both
@cases
def test_keep_all_and_removal_leave_no_trace(strategy, case):
    """keep=1.0 and a removed patch are bit-equal to the stock model, and nothing is left on any module or config."""
    check_no_trace(model_of(case), inputs_of(case), strategy, **options_of(strategy))


@both
@cases
def test_text_only_prompts_are_untouched(strategy, case):
    """Prompts without images go through a patched model bit-equal, also right after a call with images."""
    model, text = model_of(case), inputs_of(case, images=(0, 0))
    stock, written = forward(model, text).logits, generate(model, text, 4)
    with patched(model, strategy, **options_of(strategy)):
        generate(model, inputs_of(case), 2)
        assert torch.equal(forward(model, text).logits, stock)
        assert torch.equal(generate(model, text, 4).logits, written.logits)


@functools.cache
def sees_images_without_cache(case) -> bool:
    """Whether the stock model's generate(use_cache=False) gives the images to every step."""
    model, inputs = model_of(case), inputs_of(case)
    plain = generate(model, inputs, 2, use_cache=False)
    again = forward(model, grow(inputs, plain.tokens[:, :1])).logits[:, -1]
    return torch.allclose(plain.logits[1], again, atol=1e-6, rtol=0)


@both
@cases
def test_without_cache_each_step_is_a_prefill(strategy, case):
    """use_cache=False gives what forwards over prompt plus text so far give. They choose anew each time, so the cached
    logits are theirs as long as they choose the same; a method that looks at no text always does."""
    if not sees_images_without_cache(case):
        pytest.skip("without a cache this version of the stock model has no images after the first token")
    model, inputs, steps = model_of(case), inputs_of(case), 5
    with patched(model, strategy, **options_of(strategy)):
        cached = generate(model, inputs, steps)
        kept = [step.kept for image in vtc.report(model).images for step in image.steps]
        plain = generate(model, inputs, steps, use_cache=False)
        same = True
        for step in range(steps):
            again = forward(model, grow(inputs, plain.tokens[:, :step])).logits[:, -1]
            torch.testing.assert_close(plain.logits[step], again, atol=1e-9, rtol=0)
            chosen = [step.kept for image in vtc.report(model).images for step in image.steps]
            same = same and all(torch.equal(x, y) for x, y in zip(kept, chosen, strict=True))
            if same:
                torch.testing.assert_close(plain.logits[step], cached.logits[step], atol=1e-9, rtol=0)
            assert same or strategy != "visiondrop"


@both
@cases
def test_report_is_true(strategy, case):
    """Cache lengths, averages, FLOPs and bytes against the cache's tensors and arithmetic by hand."""
    inputs, config = inputs_of(case), model_of(case).config.get_text_config()
    output, report = run(strategy, case, inputs)
    rows = lengths_by_layer(report, inputs)
    shapes, longest = cached_lengths(output.past_key_values), list(map(max, zip(*rows, strict=True)))
    assert report.kv_lengths == shapes
    assert [n for n in shapes if n is not None] == [n for n, m in zip(longest, shapes, strict=True) if m is not None]
    assert output.logits.shape[1] == longest[-1]
    full = inputs["attention_mask"].sum(1).tolist()
    both_rows = [[n] * DEPTH for n in full], rows
    before, after = (sum(prompt_flops(config, row) for row in each) for each in both_rows)
    assert report.prefill_flops == (before, after + report.ahead_flops())  # see test_looking_ahead.py
    cache = output.past_key_values
    assert report.kv_bytes == tuple(cached_bytes(model_of(case), cache, each) for each in both_rows)
    visual = [sum(seen_by_layer(image)[layer] for image in report.images) for layer in range(DEPTH)]
    assert report.average_tokens == pytest.approx(sum(visual) / DEPTH)
    assert report.average_share == pytest.approx(sum(visual) / DEPTH / sum(i.before for i in report.images))
    assert (report.prompts_before, report.prompts_after) == (full, [row[-1] for row in rows])
    assert json.loads(json.dumps(report.to_dict()))["kv_lengths"] == shapes
    assert str(next(n for n in reversed(shapes) if n is not None)) in str(report)


BUDGETS = [0.55, 40]


@both
@pytest.mark.parametrize("keep", BUDGETS)
@families
def test_keep_is_the_mean_over_layers(strategy, keep, case):
    """`keep` of the whole strategy is met up to the rounding of each step and, per tile, of the projector's stage."""
    model, inputs = model_of(case), inputs_of(case)
    if isinstance(keep, int) and case != "llava":
        pytest.skip("only the images of LLaVA are of one size")
    if resolved(strategy, case).projector is not None:
        keep = type(keep)(keep / 2)
    with patched(model, strategy, keep=keep):
        forward(model, inputs)
        report = vtc.report(model)
    all_layouts = [layout for single in split(inputs) for layout in layouts(model, single)]
    for image, layout in zip(report.images, all_layouts, strict=True):
        asked = keep if isinstance(keep, int) else keep * image.before
        mean = sum(seen_by_layer(image)) / DEPTH
        outside = layout.tokens - sum(tile.tokens for tile in layout.tiles)
        slack = 1 + (len(layout.tiles) + outside if image.steps[0].layer is None else 0)
        assert abs(mean - asked) <= slack
    assert report.keep == keep


@pytest.mark.parametrize("strategy", [name for name in INSIDE if resolved(name, "llava").projector is None])
def test_a_keep_out_of_reach_is_refused(strategy):
    """Layers before the first step see everything: a smaller mean is refused before the model is touched."""
    model, inputs = model_of("llava"), inputs_of("llava")

    def use(keep):
        with patched(model, strategy, keep=keep):
            forward(model, inputs)

    with unharmed(model, inputs):
        for keep in (0.05, 2):
            refused(lambda keep=keep: use(keep), "possible", kind=ConfigError)


@both
@families
def test_hidden_states_have_each_layers_length(strategy, case):
    """hidden_states[i + 1] is what layer i gives: as long as its cache."""
    output, report = run(strategy, case, output_hidden_states=True)
    widths = [h.shape[1] for h in output.hidden_states]
    assert widths[1:] == list(map(max, zip(*report.prompt_lengths, strict=True)))
    assert all(n in (None, width) for n, width in zip(report.kv_lengths, widths[1:], strict=True))
    assert widths[0] == widths[1]
