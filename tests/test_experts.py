"""Text models with experts: router logits and the load-balancing loss cover the tokens that are left."""

import sys

import pytest
import torch

import vtc
from tests.helpers import forward, inputs_of, model_of, patched
from vtc.core.errors import UnsupportedError
from vtc.patches import FAMILIES
from vtc.patching import find_family

CASES = ["qwen3_vl_moe"]
families = pytest.mark.parametrize("case", CASES)


@families
@pytest.mark.parametrize("strategy", ["hiprune", "fastv"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_router_logits_pass_through(case, strategy, padding):
    """The auxiliary loss is the model's own function over the real tokens of each layer, and a part of the loss; the
    logits are those without it."""
    model, inputs = model_of(case), inputs_of(case, padding=padding)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    config, seen = model.config.get_text_config(), []
    function = sys.modules[type(model).__module__].load_balancing_loss_func
    with patched(model, strategy, keep=0.5):
        plain = forward(model, inputs, labels=labels)
        handles = [
            layer.mlp.gate.register_forward_hook(lambda module, args, output: seen.append(output[0]))
            for layer in model.model.language_model.layers
        ]
        out = forward(model, inputs, labels=labels, output_router_logits=True)
        for handle in handles:
            handle.remove()
        alone = forward(model, inputs, output_router_logits=True)
        lengths = vtc.report(model).prompt_lengths
    rows, right = [], padding == "right"
    for layer, logits in enumerate(seen):
        per_prompt = logits.view(len(lengths), -1, logits.shape[1])
        counts = [mine[layer] for mine in lengths]
        rows += [x[:n] if right else x[-n:] for x, n in zip(per_prompt, counts, strict=True)]
    expected = function((torch.cat(rows),), config.num_experts, config.num_experts_per_tok)
    torch.testing.assert_close(out.aux_loss, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.aux_loss, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.loss - plain.loss, config.router_aux_loss_coef * expected, atol=1e-6, rtol=0)
    assert torch.equal(out.logits, plain.logits)
    assert torch.equal(alone.logits, plain.logits)


@families
def test_without_images_the_model_does_it_itself(case):
    """Text alone has the stock losses."""
    model, inputs = model_of(case), inputs_of(case, images=(0, 0))
    stock = forward(model, inputs, labels=inputs["input_ids"], output_router_logits=True)
    with patched(model, "hiprune", keep=0.5):
        out = forward(model, inputs, labels=inputs["input_ids"], output_router_logits=True)
    assert torch.equal(out.loss, stock.loss)
    assert torch.equal(out.aux_loss, stock.aux_loss)


@families
def test_costs_are_those_of_the_active_experts(case):
    """Two of four experts of 48: a token passes through an MLP of 96, gated."""
    shape = find_family(model_of(case)).language_shape()
    assert (shape.mlp, shape.gated) == (96, True)


def test_dense_layers_between_are_refused():
    """A model with experts in some layers only, which no published one has."""
    family = FAMILIES["qwen3_vl_moe"]
    model = family.tiny()
    model.model.language_model.layers[2].mlp = torch.nn.Linear(64, 64)
    with pytest.raises(UnsupportedError, match=r"text layers 2 of .* no experts.*possible"):
        family(model)
