"""Methods and benchmarks of other packages: by entry point, by --import, by MODULE:CLASS, and as classes themselves."""

import importlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import vtc.patches
from tests.test_cli import run
from vtc import ConfigError
from vtc.demo import benchmark, load
from vtc.eval.tasks import TASKS
from vtc.registry import MODULES
from vtc.selection import Selection
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

METHOD = '''
from dataclasses import dataclass
from pathlib import Path

import torch

from vtc.selection import Selection
from vtc.strategies.base import Stage


@dataclass(frozen=True)
class Tail(Stage):
    """The last tokens.

    In raster order.
    """

    skip: int = 0
    strategy = Path(__file__).with_name("tail.yaml")

    def select(self, context, encoder):
        last = context.tokens - self.skip
        return Selection(torch.arange(last - context.count, last).expand(len(context.ordinals), -1))
'''

TASK = '''
from vtc.eval.tasks import TASKS
from vtc.eval.tasks.demo import Demo


@TASKS.register("backwards")
class Backwards(Demo):
    """The demo benchmark with every answer read backwards."""

    name = "backwards"

    def score(self, reference, text):
        return super().score(reference, text[::-1])
'''


def select(self, context, encoder):
    """The first tokens."""
    return Selection(torch.arange(context.count).expand(len(context.ordinals), -1))


@dataclass(frozen=True)
class Head(Stage):
    """The first tokens."""

    wanted: str = "first"
    select = select


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    """Registries, environment and import path as they were before."""
    for registry in (METHODS, TASKS):
        registry.names()
        for held in ("_items", "_unnamed", "_broken"):
            monkeypatch.setattr(registry, held, dict(getattr(registry, held)))
        monkeypatch.setattr(registry, "_looked", False)
    monkeypatch.setenv(MODULES, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith(("outsiders_", "patches"))]:
        del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> Path:
    """The folder, with these files in it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    return folder


def installed(folder: Path, points: str) -> Path:
    """A package with one method and one benchmark, as an installer would have left it in `folder`."""
    return write(
        folder,
        {
            "outsiders_package/__init__.py": "",
            "outsiders_package/method.py": METHOD,
            "outsiders_package/task.py": TASK,
            "outsiders_package/tail.yaml": 'description: "What comes last."\nkeep: 0.125\npositions: keep\n',
            "outsiders-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: outsiders\nVersion: 1.0\n",
            "outsiders-1.0.dist-info/entry_points.txt": points,
        },
    )


def kept(strategy: object, **options) -> float:
    """The visual tokens that the bundled model keeps of a picture's 196."""
    model, processor = load()
    vtc.patch(model, strategy, **options)
    sample = benchmark.sample("test", 0)
    question = [{"type": "image", "image": sample["image"]}, {"type": "text", "text": sample["question"]}]
    turns = [{"role": "user", "content": question}]
    inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    model.generate(**inputs, max_new_tokens=2)
    return vtc.report(model).tokens_after


POINTS = """[vtc.strategies]
tail = outsiders_package.method:Tail
[vtc.tasks]
backwards = outsiders_package.task
"""


def test_an_installed_package_is_a_part_of_everything(tmp_path, capsys):
    """Its method with its own YAML, and its benchmark: in lists, on a model, and in an evaluation."""
    sys.path.insert(0, str(installed(tmp_path / "site", POINTS)))
    assert vtc.strategies()[-1] == "tail"
    listed = json.loads(run(capsys, "list", "--json")[1])["strategies"]
    assert listed[-1] == {"name": "tail", "budget": "keep=0.125", "description": "What comes last."}
    code, out, _ = run(capsys, "show", "tail", "--set", "skip=3")
    assert (code, "positions: keep" in out, "skip: 3" in out) == (0, True, True)
    assert kept("tail") == 25
    assert "backwards" in run(capsys, "eval", "tasks")[1]
    grid = ["--model", "demo", "--strategy", "tail", "--task", "backwards", "--limit", "7", "--output", tmp_path / "r"]
    assert run(capsys, "eval", *grid)[0] == 0
    (result,) = (tmp_path / "r" / "runs").glob("*.json")
    assert json.loads(result.read_text())["method"]["resolved"]["stages"] == [{"method": "tail", "skip": 0}]


def test_what_is_broken_or_taken_leaves_the_rest_alone(tmp_path, caplog):
    """One line each, and the good ones are there."""
    wrong = ("absent = outsiders_absent:X", "hiprune = outsiders_package.method:Tail", "no = os:sep")
    points = POINTS.replace("tail =", "\n".join([*wrong, "crash = outsiders_crash", "tail ="]))
    site = write(installed(tmp_path, points), {"outsiders_crash.py": "1 / 0"})
    sys.path.insert(0, str(site))
    shipped = METHODS["hiprune"]
    assert "tail" in METHODS.names()
    assert METHODS["hiprune"] is shipped
    lines = [record.getMessage() for record in caplog.records if record.name == "vtc"]
    assert len(lines) == 4
    for name, why in {
        "absent": "No module named", "hiprune": "already registered", "no": "possible: a class derived", "crash": "Zero"
    }.items():  # fmt: skip
        (line,) = [one for one in lines if f"method {name!r} of package 'outsiders'" in one]
        assert why in line
        assert "\n" not in line
    with pytest.raises(ConfigError, match="'crash' of package 'outsiders' cannot be loaded: ZeroDivisionError"):
        vtc.load_strategy("crash")


@pytest.mark.parametrize(
    ("points", "printed"), [("", []), ("[vtc.strategies]\ntail = outsiders_package.method:Tail\n", ["tail"])]
)
def test_lists_look_at_packages_only_when_asked(tmp_path, points, printed):
    """Nothing of a package is imported before a name is missed or a list is wanted."""
    sys.path.insert(0, str(installed(tmp_path, points)))
    assert METHODS["hiprune"].__module__ == "vtc.strategies.hiprune"
    assert "outsiders_package.method" not in sys.modules
    assert METHODS.outside() == printed


def test_a_module_that_is_no_package(tmp_path, monkeypatch, capsys):
    """--import finds it in the working folder, and says so to the processes that are started from here."""
    write(tmp_path, {"outsiders_file.py": METHOD + "\n\nfrom vtc.strategies import METHODS\n"
                     'METHODS.register("tail")(Tail)\n', "tail.yaml": "keep: 0.5\n"})  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "show", "tail", "--import", "outsiders_file")
    assert (code, "keep: 0.5" in out) == (0, True)
    assert os.environ[MODULES] == "outsiders_file"
    del sys.modules["outsiders_file"], METHODS._items["tail"]
    METHODS._looked = False  # as in a new process
    assert METHODS["tail"].__module__ == "outsiders_file"
    code, _, err = run(capsys, "list", "--import", "outsiders_nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert "--import 'outsiders_nowhere' cannot be imported" in err


def commands() -> list[list[str]]:
    """The commands that can meet the name of something from outside."""
    alone = ["list", "show", "validate", "eval", "sweep", "report", "inspect", "bench", "serve"]
    return [*([name] for name in alone), ["eval", "score"], ["eval", "tasks"]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_imports(command, capsys):
    """Before anything else."""
    needed = {"show": ["x"], "validate": ["x"], "sweep": ["x", "--output", "x"], "report": ["x"], "serve": ["x"]}
    arguments = needed.get(command[0], ["x"] if command[-1] == "score" else [])
    code, _, err = run(capsys, *command, *arguments, "--import", "outsiders_nowhere")
    assert code == 2
    assert "--import 'outsiders_nowhere' cannot be imported" in err


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
    assert METHODS["cell"] is again


def test_a_second_copy_of_a_module_of_vtc_is_refused():
    """Under the name of the folder beside vtc/ it is another module, with other classes."""
    copy = vtc.patches.__name__.partition(".")[2]
    with pytest.raises(ConfigError, match="'llava' is already registered"):
        importlib.import_module(f"{copy}.llava")
