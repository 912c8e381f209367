"""`vtc show` explains what it prints: the meaning of each knob, and defaults that depart by family."""

from dataclasses import dataclass

import pytest
import yaml

import vtc
from tests.test_cli import run
from vtc.config.annotated import OPTIONS
from vtc.config.knobs import knobs_of, meanings
from vtc.patches import FAMILIES
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

SHIPPED = [name for name in METHODS if METHODS[name].__module__.startswith("vtc.strategies.")]


@pytest.mark.parametrize("method", SHIPPED)
def test_every_knob_is_described(method):
    """In the method's own docstring, which `vtc show` prints; nothing else is."""
    assert list(meanings(METHODS[method])) == knobs_of(METHODS[method])


@pytest.mark.parametrize("strategy", vtc.strategies())
def test_every_knob_is_explained(strategy, capsys):
    """Above its value, whatever its length; the output is a strategy still."""
    out = run(capsys, "show", strategy)[1]
    assert yaml.safe_load(out) == vtc.load_strategy(strategy).dump()
    for stage in vtc.load_strategy(strategy).stages:
        for knob, text in meanings(type(stage.stage)).items():
            above = out.split(f"method: {stage.method}\n")[1].split(f"\n  {knob}:")[0].split("\n")
            comment = []
            while above and above[-1].startswith("  # "):
                comment.insert(0, above.pop()[4:])
            assert " ".join(comment).startswith(text.removesuffix("."))
    assert f"# {OPTIONS['positions']}" in out


def told_in(out: str) -> dict[str, str]:
    """The default that is told above each key, its lines joined."""
    told, comment = {}, ""
    for line in out.splitlines():
        key, text = line.split(":")[0].strip(), line.strip().removeprefix("# ")
        if not line.strip().startswith("#"):
            told[key], comment = comment, ""
        elif text.startswith("default: ") or comment:
            comment = f"{comment} {text}".strip()
    return told


def test_defaults_are_told_where_something_departs(capsys):
    """By family, and by what was set; a budget for the whole has no default where the stages have their own."""
    qwen = ", ".join(name for name in FAMILIES if "qwen2_5_vl" in (name, FAMILIES[name].follows))
    next_ = ", ".join(name for name in FAMILIES if "llava_next" in (name, FAMILIES[name].follows))
    told = told_in(run(capsys, "show", "hiprune", "--family", "qwen2_5_vl", "--set", "alpha=0.2", "--keep", "0.5")[1])
    assert told["alpha"] == "default: 0.1"
    assert told["object_layer"] == f"default: 0.375; 0.5 on {qwen}"
    assert told["rounding"] == f"default: ceil; round on {qwen}; floor on {next_}"
    assert told["keep"] == "default: 0.25"
    told = told_in(run(capsys, "show", "transprune", "--set", "layers=[3]", "--set", "ratios=[0.5]")[1])
    assert told["layers"] == f"default: [0.21875, 0.28125, 0.375]; [0.25, 0.3214, 0.4286] on {qwen}"
    assert told["ratios"] == "default: null"
    assert "default" not in run(capsys, "show", "visiondrop", "--keep", "0.1")[1].split("keep: 0.1")[0]


def test_docstrings_of_other_packages():
    """A method without the list, or with less in it, is shown without comments."""

    @dataclass(frozen=True)
    class Bare(Stage):
        """Keeps something.

        Knobs:
        - known: what it does,
          at length.
        - other: no knob.
        """

        known: int = 1
        unknown: int = 2

    assert meanings(Bare) == {"known": "what it does, at length."}
    assert meanings(type("Plain", (Bare,), {"__doc__": "Knobs: known: in a row."})) == {}
