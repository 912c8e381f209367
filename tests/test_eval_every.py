"""Every shipped strategy is evaluated by its name alone, at its own budget."""

import json

import pytest

import vtc
from tests.test_eval import settings
from vtc.eval.runner import evaluate

FEW = ("apet", "var", "hired", "tome")  # several seeds, nothing dropped, tiles, inside the encoder
CLIPS = ("dycoke", "evs", "v_cast")  # refused on the bundled model, which takes none
EVERY = tuple(name for name in vtc.strategies() if name not in CLIPS)


@pytest.mark.parametrize("strategies", [FEW, pytest.param(EVERY, marks=pytest.mark.full)])
def test_by_name(tmp_path, strategies):
    """It ends without a failed sample."""
    assert evaluate(settings(tmp_path, strategies=strategies, keeps=(None,), limit=1)) == 0
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == len(strategies)
    assert all((task["n"], task["n_errors"]) == (1, 0) for run in runs for task in run["tasks"].values())
