"""Methods without a package: classes, instances and MODULE:CLASS, and a class that is registered again."""

import importlib
from dataclasses import dataclass

import pytest
import torch

import vtc
from tests.helpers_outside import kept, nothing_stays
from tests.test_house import run_python
from vtc import ConfigError
from vtc.core.selection import Selection
from vtc.patches import FAMILIES
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

__all__ = ["nothing_stays"]


def select(self, context, encoder):
    """The first tokens."""
    return Selection(torch.arange(context.count).expand(len(context.ordinals), -1))


@dataclass(frozen=True)
class Head(Stage):
    """The first tokens."""

    wanted: str = "first"
    select = select


def test_a_class_by_name_and_as_itself():
    """Classes, instances and MODULE:CLASS mean the same stage; the dump of each is a strategy again."""
    by_place = f"{__name__}:Head"
    for given in (Head, Head(), by_place, {"stages": [{"method": by_place}]}):
        config = vtc.load_strategy(given, keep=0.5)
        assert config.stages[0].stage == Head()
        assert vtc.load_strategy(config.dump()).stages == config.stages
    assert vtc.load_strategy(Head("second"), keep=4).stages[0].stage.wanted == "second"
    assert [s.method for s in vtc.load_strategy([Head(), "fastv"], keep=0.5).stages] == [by_place, "fastv"]


def test_a_model_is_patched_with_an_instance():
    """No registration is needed."""
    assert kept(Head(), keep=10) == 10


class Abstract(Stage):
    """Chooses nothing."""


class Knobless(Stage):
    """Its knob is no field."""

    select = select

    def __init__(self, wanted):
        object.__setattr__(self, "wanted", wanted)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("outsiders_nowhere:Centre", "method 'outsiders_nowhere:Centre' cannot be imported: ModuleNotFoundError"),
        (f"{__name__}:Centre", "has no 'Centre'; possible: MODULE:CLASS"),
        ("os:sep", "is '/'; possible: a class derived from Stage or DecoderStage"),
        ({"stages": [{"method": ":"}]}, "method ':' cannot be imported"),
        (dict, "possible: a class derived from Stage or DecoderStage"),
        (object(), "strategy has type object; possible: a name, a YAML file, a mapping, a method"),
        (Abstract, "Abstract is abstract; possible: a class that defines select"),
        (Knobless("first"), "method Knobless is no dataclass"),
    ],
)
def test_what_is_no_method_gets_one_line(given, why):
    """Before a model is touched."""
    with pytest.raises(ConfigError) as error:
        vtc.load_strategy(given, keep=0.5)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_module_that_ends_the_program(tmp_path, monkeypatch):
    """A script with an exit at its end is refused like any other broken module; vtc does not end with it."""
    (tmp_path / "outsiders_exit.py").write_text("raise SystemExit(0)", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'outsiders_exit:Any' cannot be imported: SystemExit: 0"):
        vtc.load_strategy("outsiders_exit:Any", keep=0.5)


def cell(module: str, name: str = "Cell") -> type:
    """A method as a notebook's cell makes it: a new class at each run."""
    return dataclass(frozen=True)(type(name, (Stage,), {"__module__": module, "__qualname__": name, "select": select}))


def test_the_same_class_again_takes_the_place():
    """A cell that is run twice; a class of another module is refused, as is one of another name."""
    METHODS.register("cell")(cell("__main__"))
    before = vtc.load_strategy("cell", keep=0.5)
    again = METHODS.register("cell")(cell("__main__"))
    assert METHODS["cell"] is again
    assert before.dump()["stages"] == [{"method": "cell"}], "a strategy that was resolved before keeps its name"
    for other in (cell("elsewhere"), cell("__main__", "Other")):
        with pytest.raises(ConfigError, match="'cell' is already registered by"):
            METHODS.register("cell")(other)
    with pytest.raises(ConfigError, match="'hiprune' is already registered by"):
        METHODS.register("hiprune")(cell("__main__"))
    with pytest.raises(ConfigError, match="'hiprune_transprune' has a name that vtc uses"):
        METHODS.register("hiprune_transprune")(cell("__main__"))
    assert METHODS["cell"] is again


def test_the_first_to_come_does_not_take_a_name_of_vtc():
    """Also where nothing of vtc has been imported yet."""
    code = """
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

class HiPrune(Stage):
    def select(self, context, encoder): ...

try:
    METHODS.register("hiprune")(HiPrune)
except ValueError as error:
    print(error)
print(METHODS["hiprune"].__module__)
"""
    refused, module = run_python("-c", code).stdout.splitlines()
    assert "'hiprune' is already registered" in refused
    assert module == "vtc.strategies.hiprune"


def test_a_second_copy_of_a_module_of_vtc_is_refused():
    """Under the name of the folder beside vtc/ it is another module, with other classes."""
    copy = FAMILIES.package.partition(".")[2]
    with pytest.raises(ConfigError, match="'llava' is already registered"):
        importlib.import_module(f"{copy}.llava")
