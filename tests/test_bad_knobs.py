"""Every knob of every method at values far out: refused in one line that names it, or a forward pass that is finite."""

import dataclasses

import pytest
import torch

import vtc
from tests.helpers import refusal
from vtc.check.trial import Tiny, Trial
from vtc.core.errors import VtcError
from vtc.patches import FAMILIES
from vtc.strategies import METHODS

WRONG = (float("nan"), float("inf"), {}, [[1]], [float("nan")])
EXTREME = (0, 10**30, 1e308)
MORE = (-1, 10**9, 1e9, -1e308, [], [0], [1e9], [1.0])
BEFORE = {"vflowopt": [{"method": "vflowopt_projector", "keep": 0.5}]}  # methods that need another one
CELLS = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")  # whose windows or planes are of whole cells
ONLY = {("flowcut", family): {"merge": "cells"} for family in CELLS}  # knobs without which a family refuses a method


def knobs(method: str) -> list[str]:
    """Its knobs."""
    return [field.name for field in dataclasses.fields(METHODS[method])]


@pytest.fixture(scope="module")
def tiny():
    """By family, in float32, where large numbers overflow first."""
    made: dict[str, Tiny] = {}

    def of(family: str) -> Tiny:
        if family not in made:
            made[family] = Tiny(family, torch.float32)
        return made[family]

    return of


def line(error: VtcError) -> str:
    """What a user sees of it."""
    text = str(error)
    assert text.isprintable()
    assert len(text) <= 500
    return text


def strategy(method: str, family: str, **knobs) -> dict:
    """The method with what it cannot do without."""
    return {"stages": [*BEFORE.get(method, []), {"method": method, **ONLY.get((method, family), {}), **knobs}]}


QUICK = ("pitome", "recoverable", "soft_merge", "token_correlation", "vflowopt_projector", "vscan_projector")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_wrong_values_are_refused(method):
    """What fits no knob's type, and numbers that are not finite."""
    budget = {} if METHODS[method].site == "decoder" else {"keep": 0.5}
    for knob in knobs(method):
        for value in WRONG:
            with pytest.raises(vtc.ConfigError) as error:
                vtc.load_strategy({"stages": [{"method": method, knob: value}]}, **budget)
            assert knob in line(error.value)


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("llava", EXTREME),
        *(pytest.param(name, EXTREME + MORE, marks=pytest.mark.full) for name in vtc.families()),
    ],
)
@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.full) for m in sorted(METHODS)]
)
def test_extreme_values_are_refused_or_run(method, family, values, tiny):
    """Whatever is accepted also runs; a refusal is the knob's own, so the method itself runs on the family."""
    given = {"keep": 0.5} if METHODS[method].site in ("projector", "encoder") else {}
    if getattr(METHODS[method], "clips", False) and FAMILIES[family].video is None:
        pytest.skip(f"{method} acts on clips, which {family} does not take")
    assert Trial(strategy(method, family), tiny(family), given).run().output.logits.isfinite().all()
    for knob in knobs(method):
        for value in values:
            try:
                run = Trial(strategy(method, family, **{knob: value}), tiny(family), given).run()
            except vtc.ConfigError as error:
                refusal(error, knob)
            else:
                assert run.output.logits.isfinite().all(), (knob, value)
