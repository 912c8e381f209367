"""A drop that looks at a layer's attention ahead projects keys of all columns, the queries that it reads, no values;
and the report's FLOPs are those of the modules that ran."""

import functools

import pytest
import torch
from torch import nn

import vtc
from tests.helpers import HYBRIDS, inputs_of, model_of
from vtc.patches import FAMILIES
from vtc.patches._ahead import looking_ahead
from vtc.patching import find_family

AHEAD = ("pyramiddrop", "transprune", "visiondrop", "dart", "fastv")
FAMILIES_INSIDE = [
    n for n in vtc.families() if n not in HYBRIDS and "decoder" not in FAMILIES[n].refuses and "moe" not in n
]


class Multiplied:
    """Counts what the projections of a language model multiply: rows of each module, and FLOPs in all."""

    def __init__(self, language_model):
        self.flops, self.rows, self.handles = 0, {}, []
        for name, module in language_model.named_modules():
            if isinstance(module, nn.Linear):
                self.handles.append(module.register_forward_pre_hook(functools.partial(self.add, name)))

    def add(self, name, module, args):
        rows = args[0].shape[:-1].numel()
        self.rows.setdefault(name, []).append(rows)
        self.flops += 2 * rows * module.in_features * module.out_features

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.product(cases=2)
@pytest.mark.parametrize("case", FAMILIES_INSIDE)
@pytest.mark.parametrize("strategy", AHEAD)
def test_flops_are_those_of_the_modules(strategy, case):
    """One prompt without padding: projections by counting, scores and values by the formula."""
    model, inputs = model_of(case), inputs_of(case, images=(1,))
    language_model = find_family(model).language_model
    with vtc.patched(model, strategy), torch.no_grad(), Multiplied(language_model) as counted:
        model(**inputs)
        report = vtc.report(model)
    shape = report.shape
    scores = sum(4 * n * n * shape.heads * shape.head_dim for n in report.prompt_lengths[0])
    assert report.prefill_flops[1] == counted.flops + scores
    looked = strategy not in ("fastv", "dart")
    assert bool(report.ahead) == looked


def test_only_what_is_read_is_projected():
    """PyramidDrop reads one query; values are projected by the layer alone, of the tokens that are left."""
    model, inputs = model_of("llava"), inputs_of("llava", images=(1,))
    with vtc.patched(model, "pyramiddrop"), torch.no_grad():
        with Multiplied(find_family(model).language_model) as counted:
            model(**inputs)
        report = vtc.report(model)
    steps = {step.layer for image in report.images for step in image.steps}
    (lengths,) = report.prompt_lengths
    for layer in steps:
        rows = {part: counted.rows[f"layers.{layer}.self_attn.{part}_proj"] for part in "qkv"}
        before, after = lengths[layer - 1], lengths[layer]
        assert rows == {"q": [1, after], "k": [before, after], "v": [after]}


def test_the_module_itself_is_untouched():
    """Another object with the same parameters and hooks; unusual projections are left alone."""
    attention = model_of("llava").model.language_model.layers[0].self_attn
    before = dict(vars(attention)), dict(attention._modules)
    other = looking_ahead(attention, 3)
    assert other is not attention
    assert type(other) is type(attention)
    assert other._forward_hooks is attention._forward_hooks
    assert (dict(vars(attention)), dict(attention._modules)) == before
    x = torch.randn(2, 5, attention.q_proj.in_features, dtype=attention.q_proj.weight.dtype)
    torch.testing.assert_close(other.q_proj(x)[:, 3:], attention.q_proj(x)[:, 3:])
    assert not other.q_proj(x)[:, :3].any()
    assert other.v_proj(x).shape == attention.v_proj(x).shape
    assert other.v_proj(x).untyped_storage().nbytes() == x.element_size()
    fused = nn.Module()
    fused.qkv = nn.Linear(4, 12)
    assert looking_ahead(fused, 3) is fused
