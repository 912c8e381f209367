"""Sweeps through the bundled model: what is run, skipped, isolated, searched, and written at the end."""

import copy
import io
import json

import pytest
import torch

import vtc
from tests.helpers_sweep import GRID, SEARCH, assert_exactly_once, lasting, summary_of
from vtc.cli import main
from vtc.core.errors import ConfigError
from vtc.eval import models
from vtc.eval.running.answers import Answerer
from vtc.eval.sweep import engine, work
from vtc.eval.sweep.cells import Place
from vtc.eval.sweep.engine import Asked, sweep
from vtc.eval.sweep.study import public
from vtc.io.terminal import Terminal


@pytest.fixture(scope="module")
def demo():
    """The bundled model."""
    return models.load("demo", {}, "cpu")


@pytest.fixture(scope="module")
def answered():
    """What was answered already in these tests, by method, seed and samples: nothing is generated twice."""
    return {}


@pytest.fixture(autouse=True)
def loads(demo, answered, monkeypatch):
    """Which models are loaded; all of them are the bundled one."""
    found, real = [], Answerer._answer

    def answer(self, docs):
        key = str((self.run.record(), torch.initial_seed(), [self.task.ident(doc) for doc in docs]))
        if key not in answered:
            answered[key] = real(self, docs)
        return copy.deepcopy(answered[key])

    monkeypatch.setattr(Answerer, "_answer", answer)
    monkeypatch.setattr(work, "load", lambda name, args, device: found.append(name) or demo)
    monkeypatch.setattr(engine, "report", lambda folders: folders)  # drawn in test_report*.py
    return found


def run(folder, text, name="dir", **asked) -> tuple[int, str, dict]:
    """Runs a sweep: number of failed cells, what is printed, sweep.json."""
    file, out = folder / "toy.yaml", io.StringIO()
    file.write_text(text)
    failed = sweep(str(file), Asked(folder / name, **asked), Terminal(file=out))
    written = (folder / name / "sweep.json").is_file()
    return failed, out.getvalue(), summary_of(folder / name) if written else {}


@pytest.fixture
def breaking(monkeypatch):
    """Makes the cells of a strategy raise; returns the function, which also takes what to raise (None: nothing)."""
    real, state = work.evaluate, {}

    def evaluate(settings, **given):
        if settings.strategies == (state.get("strategy"),):
            state["after"] = state.get("after", 0) - 1
            if state["after"] < 0:
                raise state["error"]
        return real(settings, **given)

    def broken(strategy, error, after=0):
        state.update(strategy=strategy, error=error, after=after)

    monkeypatch.setattr(work, "evaluate", evaluate)
    return broken


def test_grid(tmp_path, loads, breaking, monkeypatch):
    """All cells, one model load, values, best files that vtc takes; a second start runs nothing and says the same."""
    failed, out, found = run(tmp_path, GRID)
    assert failed == 0
    assert loads == ["demo"]
    assert [row["state"] for row in found["cells"]] == ["done"] * 11
    roles = [row["role"] for row in found["cells"]]
    assert (roles.count("baseline"), roles.count("cell"), roles.count("heldout")) == (2, 6, 3)
    assert found["schema"] == "vtc.sweep/1"
    assert found["file"] == GRID
    place = Place(tmp_path / "dir")
    for row in found["cells"]:
        tasks = place.run(row["id"])["tasks"]["demo"]
        assert row["values"]["tokens"] == tasks["tokens"]["visual_average"]
        within = [name for name in ("accuracy@0.5", "accuracy@0.25") if row["values"][name] is not None]
        kept = {"none": 1.0}.get(row["params"]["strategy"], row["params"]["keep"])
        assert within == [name for name in ("accuracy@0.5", "accuracy@0.25") if kept <= float(name[9:])]
        assert {row["values"][name] for name in within} <= {tasks["figures"]["macro"]["value"]}
        assert row["samples"] == 7
    chosen = found["best"][0]
    strategy = vtc.load_strategy(str(tmp_path / "dir" / chosen["yaml"]))
    mine = next(row for row in found["cells"] if row["id"] == chosen["cell"])
    assert strategy.keep == mine["params"]["keep"]
    assert strategy.dump()["stages"] == place.run(chosen["cell"])["method"]["resolved"]["stages"]
    most = max(row["values"]["accuracy@0.5"] for row in found["cells"] if row["role"] == "cell")
    assert chosen["values"]["accuracy@0.5"] == most
    for expected in ("Pareto set", "best/accuracy@0.25.yaml", "held out (tune)"):
        assert expected in out
    breaking("hiprune", AssertionError("a finished cell was run"))
    assert lasting(run(tmp_path, GRID)[2]) == lasting(found)
    _, out, _ = run(tmp_path, GRID, dry_run=True)
    assert "8 cells; 8 done, 0 failed, 0 to run" in out
    assert_exactly_once(tmp_path / "dir", 7)


def test_failed_cells(tmp_path, breaking):
    """A cell that fails is isolated and listed with one line; the next start tries it again."""
    breaking("uniform", RuntimeError("no\n  way"))
    failed, out, found = run(tmp_path, GRID)
    assert failed == 2
    bad = [row for row in found["cells"] if row["state"] == "failed"]
    assert [row["error"] for row in bad] == ["RuntimeError: no way"] * 2
    assert found["heldout"]["holds"] in (True, False), "the others are concluded"
    assert "FAILED uniform keep=0.5: RuntimeError: no way" in out
    folder = tmp_path / "dir" / "cells" / bad[0]["id"]
    assert 'raise state["error"]' in (folder / "traceback.txt").read_text()
    breaking(None, None)
    failed, _, found = run(tmp_path, GRID)
    assert failed == 0
    assert not (folder / "error.json").exists()
    assert {row["state"] for row in found["cells"]} == {"done"}


def test_interrupt(tmp_path, breaking, capsys):
    """An interrupt ends with exit code 130, all is kept, and the same command goes on."""
    breaking("hiprune", KeyboardInterrupt(), after=2)
    file = tmp_path / "toy.yaml"
    file.write_text(GRID)
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(file), "--output", str(tmp_path / "dir")])
    assert ended.value.code == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    states = [row["state"] for row in summary_of(tmp_path / "dir")["cells"]]
    assert 0 < states.count("done") < states.count("pending") + states.count("done")
    breaking(None, None)
    assert run(tmp_path, GRID)[0] == 0
    assert_exactly_once(tmp_path / "dir", 7)


def test_max_cells_and_only(tmp_path, breaking):
    """--max-cells stops early, --only leaves the rest pending, a dry run says so without making a folder."""
    _, out, found = run(tmp_path, GRID, max_cells=3)
    assert [row["state"] for row in found["cells"]].count("done") == 3
    assert found["heldout"] is None
    _, _, found = run(tmp_path, GRID, only="strategy=uniform,keep=0.5")
    done = [row["params"]["strategy"] for row in found["cells"] if row["state"] == "done"]
    assert done.count("uniform") >= 1
    _, out, nothing = run(tmp_path, GRID, name="new", dry_run=True, only="strategy=uniform", max_cells=3)
    assert "4 cells; 0 done, 0 failed, 3 to run" in out
    assert "estimate: none, no cell is finished yet" in out
    assert not (tmp_path / "new").exists()
    _, out, _ = run(tmp_path, GRID, dry_run=True)
    assert "s per sample of" in out
    assert nothing == {}


def test_worker(tmp_path, breaking):
    """One more worker runs cells and leaves the end to the others, who find them done."""
    failed, out, found = run(tmp_path, GRID, worker=True)
    assert (failed, out, found) == (0, "", {})
    breaking("hiprune", AssertionError("a finished cell was run"), after=2)  # held out: reference and best
    failed, _, found = run(tmp_path, GRID)
    assert failed == 0
    assert {row["state"] for row in found["cells"]} == {"done"}


def test_seeds(tmp_path):
    """With several seeds the best is that of their mean, and each is a cell."""
    text = "limit: 7\nseeds: [0, 1]\nspace: {strategy: [random], keep: [0.1, 0.9]}\nobjectives: [accuracy]"
    _, _, found = run(tmp_path, text)
    cells = [row for row in found["cells"] if row["role"] == "cell"]
    value = {(row["params"]["keep"], row["params"]["seed"]): row["values"]["accuracy"] for row in cells}
    assert sorted(value) == [(0.1, 0), (0.1, 1), (0.9, 0), (0.9, 1)]
    means = [(value[keep, 0] + value[keep, 1]) / 2 for keep in (0.1, 0.9)]
    assert found["best"][0]["values"]["accuracy"] == pytest.approx(max(means))


def test_search(tmp_path, breaking):
    """A search gives the same trials however often it stops, and holds its best against the default."""
    _, out, whole = run(tmp_path, SEARCH, "whole")
    for most in (3, 4):
        assert run(tmp_path, SEARCH, "parts", max_cells=most)[2]["heldout"] is None
    _, _, parts = run(tmp_path, SEARCH, "parts")
    assert lasting(parts) == lasting(whole)
    search = whole["search"]
    assert [trial["number"] for trial in search["trials"]] == list(range(9))
    assert {trial["state"] for trial in search["trials"]} == {"complete"}
    assert search["storage"] == "study.journal"
    assert sum(search["importance"]["accuracy"].values()) == pytest.approx(1)
    values = [trial["values"]["accuracy"] for trial in search["trials"]]
    heldout = whole["heldout"]
    assert heldout["search_split"]["best"] == max(values)
    assert heldout["holds"] == (heldout["difference"]["value"] >= 0)
    assert heldout["difference"]["n"] == 6
    assert "importance for accuracy" in out
    assert_exactly_once(tmp_path / "parts", 6)
    changed = SEARCH.replace("high: 6", "high: 5")
    with pytest.raises(ConfigError, match="belongs to another space"):
        run(tmp_path, changed, "whole")


def test_search_failures(tmp_path, breaking):
    """A trial whose cell fails is told so and tried again by the next start; equal trials share a cell."""
    text = SEARCH.replace("trials: 9", "trials: 5").replace("{low: 0, high: 6, int: true}", "[2]").replace(
        "{low: 0.0, high: 1.0, step: 0.05}", "[0.1, 0.9]")  # fmt: skip
    breaking("hiprune", RuntimeError("no way"))
    failed, _, found = run(tmp_path, text)
    assert failed == 3, "the reference, and the two cells that there are"
    assert {trial["state"] for trial in found["search"]["trials"]} == {"fail"}
    breaking(None, None)
    failed, _, found = run(tmp_path, text)
    assert failed == 0
    complete = [trial for trial in found["search"]["trials"] if trial["state"] == "complete"]
    assert len(complete) == 5
    assert len({trial["cell"] for trial in complete}) == 2


def test_search_budget(tmp_path):
    """Several objectives and a budget: cells above it have no value there and are not the best."""
    text = """
limit: 6
mode: search
trials: 8
sampler: nsgaii
space: {strategy: [uniform, hiprune], keep: {low: 0.1, high: 0.9, step: 0.1}}
exclude: [{strategy: uniform}]
objectives: [{figure: accuracy, budget: 0.5}, prefill_flops]
"""
    _, out, found = run(tmp_path, text)
    trials = found["search"]["trials"]
    assert len(trials) == 8
    assert {row["params"]["strategy"] for row in found["cells"]} == {"none", "hiprune"}
    for row in found["cells"]:
        assert (row["values"]["accuracy@0.5"] is None) == ((row["params"]["keep"] or 1) > 0.5)
    best = next(row for row in found["best"] if row["objective"] == "accuracy@0.5")
    chosen = next(row for row in found["cells"] if row["id"] == best["cell"])
    assert chosen["params"]["keep"] <= 0.5
    assert "Pareto set" in out


@pytest.mark.full
def test_search_in_a_database(tmp_path):
    """Machines that share nothing but a database divide the trials, and each can conclude."""
    text, url = SEARCH.replace("trials: 9", "trials: 6"), f"sqlite:///{tmp_path}/study.db"
    run(tmp_path, text, "one", storage=url, max_cells=4)
    _, _, found = run(tmp_path, text, "two", storage=url)
    assert len([t for t in found["search"]["trials"] if t["state"] == "complete"]) == 6
    there = {row["id"] for row in found["cells"] if row["run"] is None}
    assert there, "cells of the other machine"
    assert all(row["state"] == "done" and row["values"]["accuracy"] is not None for row in found["cells"])
    assert found["heldout"]["holds"] in (True, False)


def test_no_secrets(tmp_path):
    """A storage's password is in no message and no file."""
    assert public("postgresql://me:secret@host:5432/db?password=secret") == "postgresql://host:5432/db"
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        run(tmp_path, SEARCH, storage="nosuch://me:hunter2@host/db")
    assert "hunter2" not in str(caught.value)
    assert not any("hunter2" in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_options_that_mean_nothing(tmp_path):
    """--storage without a search and --only with one are refused in one line."""
    with pytest.raises(ConfigError, match="--storage means nothing in mode grid"):
        run(tmp_path, GRID, storage="sqlite:///x")
    with pytest.raises(ConfigError, match="--only means nothing in mode search"):
        run(tmp_path, SEARCH, only="keep=0.5")


def test_relative(tmp_path):
    """`relative` is the mean over the tasks of figure / the unpruned model's, however the cells are ordered."""
    text = "limit: 7\nspace: {strategy: [uniform], keep: [0.1]}\nobjectives: [relative]"
    _, _, found = run(tmp_path, text)
    place, rows = Place(tmp_path / "dir"), {row["params"]["strategy"]: row for row in found["cells"]}
    value = {name: place.run(row["id"])["tasks"]["demo"]["figures"]["macro"]["value"] for name, row in rows.items()}
    assert rows["uniform"]["values"]["relative"] == pytest.approx(value["uniform"] / value["none"])
    assert rows["none"]["values"]["relative"] == 1
    assert json.loads((tmp_path / "dir" / "sweep.json").read_text())["heldout"] is None
