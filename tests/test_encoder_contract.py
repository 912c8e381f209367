"""The contract of every strategy with a stage inside the encoder, on every family: as test_contract.py has it."""

import pytest
import torch

import vtc
from tests.helpers import (
    IN_ENCODER,
    WITH_ENCODER_SITE,
    check_no_trace,
    family_of,
    forward,
    generate,
    grow,
    inputs_of,
    kept_of,
    model_of,
    split,
)
from tests.helpers_encoder import truth_of
from vtc.core.signals import Decoder
from vtc.patching import find_family

pytestmark = pytest.mark.product

both = pytest.mark.parametrize("strategy", IN_ENCODER)
cases = pytest.mark.parametrize("case", WITH_ENCODER_SITE)
KEEP = 0.4


def allocation(model, strategy, keep):
    """What the stages of a strategy keep on a model."""
    config = vtc.load_strategy(strategy, find_family(model).name, keep=keep)
    shape = find_family(model).language_shape()
    return config, config.allocate(Decoder("test", shape.layers, shape.softmax))


@both
@cases
def test_the_encoder_leaves_the_budget(strategy, case):
    """Each image leaves the encoder with what the budget says of its crops, but for what unpadding takes away; and the
    report tells it, place by place."""
    model, inputs = model_of(case), inputs_of(case)
    config, budget = allocation(model, strategy, KEEP)
    with vtc.patched(model, strategy, keep=KEEP):
        forward(model, inputs)
        report = vtc.report(model)
    for image, layout in zip(report.images, find_family(model).layouts(inputs), strict=True):
        whole = layout.tiles[0].tokens
        expected = sum(budget.encoder.quotas([[whole] * len(layout.tiles)])[0])
        step = image.steps[0]
        assert (step.stage, step.site, step.before) == (config.encoder.method, "encoder", layout.tokens)
        assert step.after == expected if len(layout.tiles) == 1 else 0 < step.after <= expected
        assert len(step.kept) == step.after
        assert bool((step.kept[1:] > step.kept[:-1]).all())
        assert 0 <= int(step.kept[0]) <= int(step.kept[-1]) < layout.tokens


@both
@cases
def test_equals_the_oracle(strategy, case):
    """What reaches the language model is what the encoder by hand gives, for each prompt of a padded batch."""
    model, inputs = model_of(case), inputs_of(case)
    config, budget = allocation(model, strategy, KEEP)
    stage = config.encoder
    with vtc.patched(model, {"stages": [dict(dump(stage), keep=budget.encoder.keep)]}):
        logits = forward(model, inputs).logits
        report = vtc.report(model)
    for b, single in enumerate(split(inputs)):
        expected, images = truth_of(
            model, single, stage.stage, lambda sizes: budget.encoder.quotas([sizes])[0], stage.positions
        )
        for kept, (places, _, _) in zip(kept_of(report, b), images, strict=True):
            assert kept.tolist() == places.tolist()
        torch.testing.assert_close(logits[b, -1], expected.logits[-1], atol=1e-6, rtol=0)


def dump(stage) -> dict:
    """A stage of a strategy alone, as a mapping."""
    (only,) = [row for row in stage_rows(stage) if row["method"] == stage.method]
    return only


def stage_rows(stage) -> list[dict]:
    """The stages of the strategy that has this one alone."""
    import dataclasses

    return [{"method": stage.method, "rounding": stage.rounding, **dataclasses.asdict(stage.stage)}]


@both
@cases
def test_batched_equals_one_by_one(strategy, case):
    """Each prompt alone, without padding, keeps the same tokens and gives the same last logits as in the batch; so does
    the other order of the images."""
    model, inputs = model_of(case), inputs_of(case)
    with vtc.patched(model, strategy, keep=KEEP):
        logits = forward(model, inputs).logits
        batch = vtc.report(model)
        for b, single in enumerate(split(inputs)):
            alone = forward(model, single).logits
            for kept, same in zip(kept_of(batch, b), kept_of(vtc.report(model), 0), strict=True):
                assert torch.equal(kept, same)
            torch.testing.assert_close(logits[b, -1], alone[0, -1], atol=1e-9, rtol=0)


@both
@cases
def test_keep_all_and_removal_leave_no_trace(strategy, case):
    """keep=1.0 and a removed patch are bit-equal to the stock model, and nothing is left on any module or config."""
    check_no_trace(model_of(case), inputs_of(case), strategy, keep=KEEP)


@both
@cases
def test_cached_decode_equals_recomputation(strategy, case):
    """Greedy steps on the pruned cache give the logits of full forwards over prompt plus text so far."""
    model, inputs, steps = model_of(case), inputs_of(case), 4
    rereads = bool(vtc.load_strategy(strategy, family_of(case), keep=KEEP).decoder) and strategy == "flowcut"
    with vtc.patched(model, strategy, keep=KEEP):
        cached = generate(model, inputs, steps)
        plain = generate(model, inputs, steps)
        assert torch.equal(cached.tokens, plain.tokens)
        for step in range(1 if rereads else steps):  # its second stage ranks by the last token, which is another then
            again = forward(model, grow(inputs, cached.tokens[:, :step])).logits[:, -1]
            torch.testing.assert_close(cached.logits[step], again, atol=1e-9, rtol=0)


@both
@cases
def test_text_only_prompts_are_untouched(strategy, case):
    """Prompts without images go through a patched model bit-equal."""
    model, inputs = model_of(case), inputs_of(case, images=(0, 0))
    stock = forward(model, inputs).logits
    with vtc.patched(model, strategy, keep=KEEP):
        assert torch.equal(forward(model, inputs).logits, stock)
