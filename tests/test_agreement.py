"""The objective of VFlowOpt's search: the last hidden state with and without pruning, and the ratios under a budget."""

import json

import pytest
import torch

import vtc
from tests.helpers import refused
from tests.helpers_sweep import GRID, spec_of, summary_of
from vtc.core.signals import Decoder
from vtc.eval.models import load
from vtc.eval.runner import evaluate
from vtc.eval.running.agreement import agreement
from vtc.eval.running.eval_settings import EvalSettings
from vtc.eval.sweep.cells import cell_of
from vtc.eval.sweep.engine import Asked, sweep
from vtc.eval.sweep.spec import load_spec
from vtc.eval.tasks import TASKS
from vtc.io.terminal import Terminal
from vtc.strategies.vflowopt import VFlowOpt

FIVE = """
limit: 5
split: tune
max_new_tokens: 1
space:
  strategy: [vflowopt]
  keep: [0.25]
  second: [0.6, 0.9]
  entering: [0.3]
objectives: [agreement]
"""


def rows_of(folder) -> dict[str, dict]:
    """The rows of the only log below a folder."""
    (log,) = folder.rglob("samples/*.jsonl")
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row for row in rows if "schema" not in row}


def test_rows_have_the_cosine_of_both_states(tmp_path):
    """Of a batch, against two forwards of each prompt alone; and runs that do not ask have nothing more."""
    loaded = load("demo", {}, "cpu")
    given = dict(model="demo", strategies=("hiprune+fastv",), keeps=("0.3",), split="tune", limit=4, max_new_tokens=2)
    assert evaluate(EvalSettings(tmp_path / "one", agreement=True, **given), loaded=loaded, quiet=True) == 0
    assert evaluate(EvalSettings(tmp_path / "two", **given), loaded=loaded, quiet=True) == 0
    rows, plain = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    task = TASKS["demo"](dialect="llava")
    docs = task.open("tune", 4, None)
    for doc in (docs[i] for i in range(4)):
        asked = task.asked(doc)
        inputs = loaded.encode([asked["prompt"]], [task.images(doc)])
        states = []
        for keep in (1.0, 0.3):
            with vtc.patched(loaded.model, "hiprune+fastv", keep=keep), torch.no_grad():
                states.append(loaded.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1])
        wanted = torch.nn.functional.cosine_similarity(*states, dim=0)
        assert abs(rows[asked["id"]]["agreement"] - float(wanted)) < 1e-4
        assert wanted < 0.9999
        assert "agreement" not in plain[asked["id"]]
        assert rows[asked["id"]]["text"] == plain[asked["id"]]["text"]
    (run,) = (tmp_path / "one" / "runs").glob("*.json")
    mean = sum(row["agreement"] for row in rows.values()) / 4
    assert abs(json.loads(run.read_text())["tasks"]["demo"]["agreement"] - mean) < 1e-12


def test_what_is_no_number_counts_as_0():
    states = torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])
    assert agreement(states, torch.tensor([[1.0, 1.0], [1.0, 1.0]])) == pytest.approx([0.5**0.5, 0.0])


def test_a_sweep_looks_for_it(tmp_path):
    """The best cell is the one with the larger mean; the model without pruning agrees with itself."""
    file = tmp_path / "five.yaml"
    file.write_text(FIVE)
    assert sweep(str(file), Asked(tmp_path / "out"), Terminal()) == 0
    summary = summary_of(tmp_path / "out")
    means = {}
    for row in summary["cells"]:
        rows = rows_of(tmp_path / "out" / "cells" / row["id"]).values()
        means[row["id"]] = sum(one["agreement"] for one in rows) / 5
        if row["role"] == "baseline":
            assert means.pop(row["id"]) == pytest.approx(1.0)
    (best,) = summary["best"]
    assert best["cell"] == max(means, key=means.get)
    assert best["values"]["agreement"] == pytest.approx(max(means.values()))


def test_other_sweeps_keep_their_cells():
    """Only a sweep that looks for it has cells that are seen twice."""
    assert "agreement" not in cell_of(spec_of(GRID), {"strategy": "uniform", "keep": 0.5}).params
    assert cell_of(load_spec("vflowopt_search"), {"strategy": "none"}).params["agreement"] is True


@pytest.mark.parametrize(("depth", "layers"), [(28, (9, 18)), (32, (10, 20)), (8, (3, 5))])
def test_the_last_ratio_follows_from_the_average(depth, layers):
    """Counted layer by layer, with R3 = min(1, what is left of the budget)."""
    for entering in (0.25, 0.3, 0.375):
        for second in (0.2 / 0.375, 0.7, 1.0):
            stage = VFlowOpt(layers=layers, entering=entering, second=second, average=0.25)
            first, last = (step.share for step in stage.steps(Decoder("llava", depth)))
            assert first == second
            seen = [entering] * layers[0] + [entering * first] * (layers[1] - layers[0])
            seen += [entering * last] * (depth - layers[1])
            assert last <= first
            if last < first:
                assert sum(seen) / depth == pytest.approx(0.25)
            else:
                assert sum(seen) / depth <= 0.25


def test_a_budget_lets_that_share_enter():
    """keep of the same average gives the projector the first ratio, where the last one is below 1."""
    config = vtc.load_strategy("vflowopt", "llava", keep=0.25, entering=0.3, second=0.9)
    allocation = config.allocate(Decoder("llava", 28))
    assert allocation.projector.keep == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"entering": 0.3}, ["entering=0.3 and second=None", "both, or neither"]),
        ({"entering": 1.5, "second": 0.5}, ["entering=1.5", "(0, 1]"]),
        ({"entering": 0.9, "second": 1.0}, ["above average=0.25", "smaller"]),
        ({"entering": 0.3, "second": 0.5, "layers": (3,)}, ["1 layers", "2 layers"]),
    ],
)
def test_refused(knobs, words):
    refused(lambda: VFlowOpt(**knobs).steps(Decoder("llava", 28)), *words)
