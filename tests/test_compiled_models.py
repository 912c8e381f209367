"""torch.compile on a patched model, on its parts, before patching and after: as if nothing had been compiled."""

import itertools
import logging

import pytest
import torch

import vtc
from tests.helpers import build, inputs_of
from vtc.patching import find_family


@pytest.fixture(autouse=True)
def quiet():
    """pytest would keep every line of the compiler's trace."""
    trace = logging.getLogger("torch.__trace")
    before, trace.propagate = trace.propagate, False
    yield
    trace.propagate = before
    torch.compiler.reset()


def wrapped(path):
    """Puts a compiled module in the place of one."""

    def replace(model):
        parent, _, name = path.rpartition(".")
        module = model.get_submodule(path)
        setattr(model.get_submodule(parent), name, torch.compile(module, backend="eager"))
        return model

    return replace


def forward_of(path):
    """Compiles the forward of a module."""

    def replace(model):
        module = model.get_submodule(path)
        module.forward = torch.compile(module.forward, backend="eager")
        return model

    return replace


def tower(how):
    """The same on the vision tower."""
    return lambda model: how(type(find_family(model)).tower_path)(model)


def in_place(model):
    """nn.Module.compile of each decoder layer."""
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


WAYS = {
    "whole": lambda model: torch.compile(model, backend="eager"),
    "forward": forward_of(""),
    "inner": wrapped("model"),
    "inner forward": forward_of("model"),
    "language model": wrapped("model.language_model"),
    "layers": in_place,
    "tower": tower(wrapped),
    "tower forward": tower(forward_of),
}


def run(model, call, case):
    """A forward of two prompts and two written tokens."""
    inputs = inputs_of(case, images=(2, 1), dtype=torch.float32)
    with torch.no_grad():
        logits = call(**inputs).logits
    one = inputs_of(case, images=(1,), dtype=torch.float32, seed=3)
    return logits, model.generate(**one, max_new_tokens=2, do_sample=False)


def same(found, expected):
    """Both outputs."""
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-4)
    assert torch.equal(found[1], expected[1])


WHEN = ("patched first", "compiled first", "run first")


def every():
    """All ways at all times, the two families by turns."""
    for number, (way, when) in enumerate(itertools.product(WAYS, WHEN)):
        yield ("llava", "qwen2_5_vl")[number % 2], way, when


@pytest.mark.full  # `make test` has a compiled tower in test_encoder_site.py
@pytest.mark.parametrize("case, way, when", [*every()])
def test_compiled(case, way, when):
    """The patch holds, and what it replaced is there again when it is gone."""
    model, strategy = build(case, torch.float32), "hiprune" if case == "llava" else "transprune"
    stock = run(model, model, case)
    with vtc.patched(model, strategy):
        expected = run(model, model, case)
        call = WAYS[way](model) if when == "patched first" else model
        same(run(model, call, case), expected)
    if when != "patched first":
        call = WAYS[way](model)
    if when == "run first":
        same(run(model, call, case), stock)
    with vtc.patched(model, strategy):
        same(run(model, call, case), expected)
        assert vtc.report(model).average_share < 1
    same(run(model, call, case), stock)


@pytest.mark.full
@torch.no_grad()
def test_hooks_on_some_modules_only():
    """A layer that is watched, after one of the same class that is not: what was compiled for that one is not used."""
    model = build("llava", torch.float32)
    inputs = inputs_of("llava", images=(2, 1), dtype=torch.float32)
    with vtc.patched(model, "transprune", layers=[0.4, 0.6, 0.8]):
        expected = model(**inputs).logits
        kept = [step.kept.tolist() for image in vtc.report(model).images for step in image.steps]
        found = in_place(model)(**inputs).logits
        assert [step.kept.tolist() for image in vtc.report(model).images for step in image.steps] == kept
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
