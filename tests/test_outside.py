"""Methods, families and benchmarks of other packages: by entry point and by --import, in every command."""

import json
import os
import sys
from pathlib import Path

import pytest

import vtc
from tests.helpers_launch import finish
from tests.helpers_outside import FAMILY, METHOD, POINTS, installed, kept, nothing_stays, write
from tests.helpers_sweep import start, summary_of
from tests.test_cli import run
from vtc import ConfigError
from vtc.core.registry import MODULES
from vtc.demo import load
from vtc.patching import find_family
from vtc.strategies import METHODS

__all__ = ["nothing_stays"]


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


def test_what_is_broken_is_said_once(tmp_path, caplog):
    """Who asks for it gets the line as the error, whether as a strategy or as a stage."""
    site = write(installed(tmp_path, "[vtc.strategies]\ncrash = outsiders_crash\n"), {"outsiders_crash.py": "1 / 0"})
    sys.path.insert(0, str(site))
    for strategy in ("crash", {"keep": 0.5, "stages": [{"method": "crash"}]}):
        METHODS._looked = False
        with pytest.raises(ConfigError, match="'crash' of package 'outsiders' cannot be loaded: ZeroDivisionError"):
            vtc.load_strategy(strategy)
    assert not [record for record in caplog.records if record.name == "vtc"]


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


def test_a_family_of_a_package(tmp_path, capsys):
    """In lists, as a section of a strategy, and on its models."""
    points = "[vtc.families]\nother = outsiders_family:Other\n"
    sys.path.insert(0, str(write(installed(tmp_path, points), {"outsiders_family.py": FAMILY})))
    section = {"stages": [{"method": "uniform"}], "families": {"other": {"keep": 0.5}}}
    assert vtc.load_strategy(section | {"keep": 0.25}, "other").keep == 0.5
    assert "other" in vtc.families()
    assert "other: ok" in run(capsys, "validate", "uniform", "--family", "other")[1]
    model, _ = load()
    model.config.model_type = "other"
    assert find_family(model).name == "other"


@pytest.mark.slow
@pytest.mark.full
def test_workers_of_a_sweep_import_it_too(tmp_path, monkeypatch):
    """Each is a new process; the module is in the folder that the command is run in."""
    cells = "limit: 7\nspace:\n  strategy: [tail]\n  keep: [0.5, 0.25]\n"
    method = METHOD + "\n\nfrom vtc.strategies import METHODS\nMETHODS.register('tail')(Tail)\n"
    monkeypatch.chdir(write(tmp_path, {"outsiders_file.py": method, "tail.yaml": "{}", "toy.yaml": cells}))
    code, out = finish(start(Path("toy.yaml"), Path("out"), "--workers", "2", "--import", "outsiders_file"))
    assert code == 0, out
    rows = [row for row in summary_of(Path("out"))["cells"] if row["params"]["strategy"] == "tail"]
    assert [row["state"] for row in rows] == ["done", "done"]


def commands() -> list[list[str]]:
    """The commands that can meet the name of something from outside."""
    alone = ["list", "show", "validate", "check", "eval", "sweep", "report", "inspect", "bench", "serve"]
    return [*([name] for name in alone), ["eval", "score"], ["eval", "tasks"]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_imports(command, capsys):
    """Before anything else."""
    needed = {**dict.fromkeys(("show", "validate", "check", "report", "serve"), ["x"]), "sweep": ["x", "--output", "x"]}
    arguments = needed.get(command[0], ["x"] if command[-1] == "score" else [])
    code, _, err = run(capsys, *command, *arguments, "--import", "outsiders_nowhere")
    assert code == 2
    assert "--import 'outsiders_nowhere' cannot be imported" in err
