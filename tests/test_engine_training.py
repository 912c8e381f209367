"""Labels, gradients, hidden states and half precision on a patched model."""

import functools

import pytest
import torch
from torch.nn.functional import cross_entropy

import vtc
from tests.helpers import CASES, build, forward, generate, inputs_of, kept_of, model_of, patched, refused, split, spy
from tests.helpers_costs import kinds_of
from tests.helpers_decoder import on
from tests.helpers_oracle import truth
from vtc.core.errors import UnsupportedError

pytestmark = pytest.mark.product

families = pytest.mark.parametrize("case", vtc.families())
cases = pytest.mark.parametrize("case", CASES)
paddings = pytest.mark.parametrize("padding", ["left", "right"])


def labelled(inputs, model):
    """Labels on all text tokens but the first, which only padding would predict; -100 on padding and images."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return ids.masked_fill((mask.cumsum(1) < 2) | (mask == 0) | (ids == model.config.image_token_id), -100)


@cases
@paddings
def test_loss_is_that_of_the_surviving_positions(case, padding):
    """The loss by hand: for each prompt alone, next-token cross-entropy between kept neighbours."""
    model, inputs = model_of(case), inputs_of(case, padding=padding)
    labels = labelled(inputs, model)
    with vtc.patched(model, "hiprune", keep=0.3, positions="compact"):
        out = forward(model, inputs, labels=labels)
        report = vtc.report(model)
        plain = forward(model, inputs).logits
    assert torch.equal(out.logits, plain)
    losses = []
    for b, single in enumerate(split(inputs)):
        expected = truth(model, single, kept_of(report, b), "compact")
        target = labels[b][inputs["attention_mask"][b].bool()][expected.places]
        counts = target[1:] >= 0
        losses.append(cross_entropy(expected.logits[:-1][counts], target[1:][counts], reduction="none"))
    torch.testing.assert_close(out.loss.double(), torch.cat(losses).mean(), atol=1e-6, rtol=0)


@families
def test_tuple_output_has_the_loss_first(case):
    """return_dict=False: (loss, logits, ...) with labels, (logits, ...) without."""
    model, inputs = model_of(case), inputs_of(case)
    labels = labelled(inputs, model)
    with vtc.patched(model, "uniform", keep=0.3):
        whole = forward(model, inputs, labels=labels)
        parts = forward(model, inputs, labels=labels, return_dict=False)
        bare = forward(model, inputs, return_dict=False)
    assert torch.equal(parts[0], whole.loss)
    assert torch.equal(parts[1], whole.logits)
    assert torch.equal(bare[0], whole.logits)


@families
def test_loss_options_reach_the_loss(case):
    """num_items_in_batch divides the summed loss, as in the stock model."""
    model, inputs = model_of(case), inputs_of(case)
    labels = labelled(inputs, model)
    with vtc.patched(model, "uniform", keep=0.3):
        mean = forward(model, inputs, labels=labels).loss
        summed = forward(model, inputs, labels=labels, num_items_in_batch=torch.tensor(1)).loss
        places = vtc.report(model).prompts_after
    ratio = float(summed / mean)
    assert ratio == pytest.approx(round(ratio), rel=1e-5)
    assert 1 < ratio < sum(places)


@families
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("strategy", ["hiprune", "pool", "transprune"])
def test_gradients_reach_the_projector(case, checkpointing, strategy):
    """In training mode the loss moves the features that survived. Gradient checkpointing changes nothing; it would run
    layers a second time without what was decided between them in the first, and is refused there."""
    model, inputs = build(case), inputs_of(case)
    labels = labelled(inputs, model)
    inner = model.model
    part = inner.visual.merger if hasattr(inner, "visual") else getattr(inner, "connector", None)
    part = inner.multi_modal_projector if part is None else part
    model.train()
    with on(model, strategy):
        model(**inputs, labels=labels).loss.backward()
        gradient = [p.grad.clone() for p in part.parameters()]
        assert all(bool(g.isfinite().all()) for g in gradient)
        assert any(float(g.abs().max()) > 0 for g in gradient)
        if checkpointing:
            model.zero_grad()
            model.gradient_checkpointing_enable()
            if strategy == "transprune":
                again = functools.partial(model, **inputs, labels=labels, use_cache=False)
                refused(again, "gradient checkpointing", "possible", kind=UnsupportedError)
                return
            model(**inputs, labels=labels, use_cache=False).loss.backward()
            for p, g in zip(part.parameters(), gradient, strict=True):
                torch.testing.assert_close(p.grad, g, atol=1e-9, rtol=0)


@families
def test_text_labels_are_the_stock_models(case):
    """A text-only batch with labels has the stock loss, also right after a call with images and labels."""
    model, inputs, text = model_of(case), inputs_of(case), inputs_of(case, images=(0, 0))
    stock = forward(model, text, labels=text["input_ids"]).loss
    with vtc.patched(model, "uniform", keep=0.3):
        forward(model, inputs, labels=labelled(inputs, model))
        assert torch.equal(forward(model, text, labels=text["input_ids"]).loss, stock)


@families
def test_hidden_states_and_attentions_have_the_pruned_length(case):
    """Every layer's output is of the pruned length."""
    model, inputs = build(case, torch.float32), inputs_of(case, dtype=torch.float32)
    model.set_attn_implementation("eager")
    with vtc.patched(model, "uniform", keep=0.3), spy(model) as seen:
        out = forward(model, inputs, output_hidden_states=True, output_attentions=True)
    width = seen[0]["inputs_embeds"].shape[1]
    assert width < inputs["input_ids"].shape[1]
    assert [h.shape[1] for h in out.hidden_states] == [width] * 7
    softmax = 6 - kinds_of(model.config.get_text_config()).count(True)
    assert [tuple(a.shape[2:]) for a in out.attentions] == [(width, width)] * softmax


@cases
def test_bfloat16_runs(case):
    """In bfloat16 the counts are the same as in float64, the dtype stays, and the output is finite."""
    model, inputs = build(case, torch.bfloat16), inputs_of(case, dtype=torch.bfloat16)
    exact = model_of(case)
    with vtc.patched(exact, "vtc_cls", keep=0.3):
        forward(exact, inputs_of(case))
        counts = [i.after for i in vtc.report(exact).images]
    for strategy in ("hiprune", "vtc_cls", "pool"):
        with patched(model, strategy, keep=0.3):
            out = generate(model, inputs, 3)
            assert out.logits.dtype == torch.bfloat16
            assert bool(out.logits.isfinite().all())
            if strategy == "vtc_cls":
                assert [i.after for i in vtc.report(model).images] == counts
