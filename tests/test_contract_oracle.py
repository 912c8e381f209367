"""Packing, positions and masks against an oracle: each pruned prompt built by hand and run alone, without padding."""

import pytest
import torch

import vtc
from tests.helpers import (
    CASES,
    IMAGES,
    STRATEGIES,
    forward,
    generate,
    inputs_of,
    kept_of,
    model_of,
    patched,
    split,
    spy,
)
from tests.helpers_merging import MERGED_BEFORE
from tests.helpers_oracle import truth

pytestmark = pytest.mark.product

# Those that merge at the projector are in test_decoder_oracle.py.
both = pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in MERGED_BEFORE])
cases = pytest.mark.parametrize("case", CASES)
renumbered = pytest.mark.parametrize("positions", ["keep", "compact"])
STEPS = 6


def exact(strategy):
    """The tolerance: merge weights are float32, everything else is float64."""
    return 1e-6 if strategy == "pool" else 1e-9


def truths(model, inputs, report, positions, strategy, steps=1, images=IMAGES):
    """The oracle's answer for each prompt of the batch."""
    return [
        truth(model, single, kept_of(report, b), positions, steps, pool=strategy == "pool")
        for b, single in enumerate(split(inputs, images))
    ]


@both
@cases
@renumbered
def test_generate_equals_oracle(strategy, case, positions):
    """Batched, left-padded, cached generation gives each prompt's own greedy tokens and logits."""
    model, inputs = model_of(case), inputs_of(case)
    with patched(model, strategy, keep=0.3, positions=positions):
        out = generate(model, inputs, STEPS)
        report = vtc.report(model)
    for b, expected in enumerate(truths(model, inputs, report, positions, strategy, STEPS)):
        assert out.tokens[b].tolist() == expected.tokens
        torch.testing.assert_close(out.logits[:, b], expected.logits[-STEPS:], atol=exact(strategy), rtol=0)
        assert report.prompts_after[b] == len(expected.places)


@both
@cases
@renumbered
@pytest.mark.parametrize("padding", ["left", "right"])
def test_forward_equals_oracle(strategy, case, positions, padding):
    """Every real column of the pruned batch, visual tokens included, has the oracle's logits."""
    model, inputs = model_of(case), inputs_of(case, padding=padding)
    with patched(model, strategy, keep=0.3, positions=positions), spy(model) as seen:
        logits = forward(model, inputs).logits
        report = vtc.report(model)
    mask = seen[0]["attention_mask"]
    real = torch.ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    for b, expected in enumerate(truths(model, inputs, report, positions, strategy)):
        torch.testing.assert_close(logits[b][real[b]], expected.logits, atol=exact(strategy), rtol=0)


@cases
@renumbered
def test_mixed_batch_equals_oracle(case, positions):
    """A prompt without images, one with three and one with one, in one batch."""
    model, images = model_of(case), (0, 3, 1)
    inputs = inputs_of(case, images=images)
    with vtc.patched(model, "hiprune", keep=0.3, positions=positions):
        out = generate(model, inputs, STEPS)
        report = vtc.report(model)
    for b, expected in enumerate(truths(model, inputs, report, positions, "hiprune", STEPS, images)):
        assert out.tokens[b].tolist() == expected.tokens
        torch.testing.assert_close(out.logits[:, b], expected.logits[-STEPS:], atol=1e-9, rtol=0)


@cases
@renumbered
def test_without_a_mask_equals_oracle(case, positions):
    """A single prompt given without attention_mask, forward and then by hand token by token."""
    model = model_of(case)
    inputs = inputs_of(case, images=(2,))
    bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
    with vtc.patched(model, "uniform", keep=0.3, positions=positions), torch.no_grad():
        out = model(**bare, use_cache=True)
        report, logits = vtc.report(model), [out.logits[0]]
        expected = None
        tokens = [_best(model, out.logits)]
        for _ in range(STEPS - 1):
            out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values)
            logits.append(out.logits[0])
            tokens.append(_best(model, out.logits))
    (expected,) = truths(model, inputs, report, positions, "uniform", STEPS, (2,))
    assert tokens == expected.tokens
    torch.testing.assert_close(torch.cat(logits), expected.logits, atol=1e-9, rtol=0)


def _best(model, logits):
    allowed = logits[0, -1].clone()
    allowed[model.generation_config.suppress_tokens] = -torch.inf
    return int(allowed.argmax())
