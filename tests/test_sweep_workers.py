"""Several workers on one sweep, killed at any moment: every cell exactly once, and the same end."""

import random

import pytest

from tests.helpers_launch import finish
from tests.helpers_sweep import (
    GRID,
    SEARCH,
    assert_exactly_once,
    kill_after,
    lasting,
    lasting_report,
    start,
    summary_of,
)
from vtc.eval.sweep.engine import Asked, sweep

KILLS = 5


@pytest.mark.full
def test_kills(tmp_path):
    """SIGKILL at five moments with two workers on one study, then to the end: nothing is lost, nothing done twice."""
    file, output, generator = tmp_path / "toy.yaml", tmp_path / "search", random.Random(7)
    file.write_text(SEARCH)
    for _ in range(KILLS):
        process = start(file, output, "--workers", "2")
        kill_after(process, output, generator.randint(1, 6), generator.uniform(0, 0.4))
    code, out = finish(start(file, output, "--workers", "2"))
    assert code == 0, out
    found = summary_of(output)
    assert_exactly_once(output, 6)
    assert {row["state"] for row in found["cells"]} == {"done"}
    trials = found["search"]["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 9
    assert len({trial["number"] for trial in trials}) == 9
    values = {row["id"]: row["values"]["accuracy"] for row in found["cells"]}
    assert all(trial["values"]["accuracy"] == values[trial["cell"]] for trial in trials)
    assert found["heldout"]["search_split"]["best"] == max(trial["values"]["accuracy"] for trial in trials)
    folders = {folder.name for folder in (output / "cells").iterdir()}
    assert folders == {row["id"] for row in found["cells"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A grid's folder, from one worker, and its YAML beside."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "toy.yaml").write_text(GRID)
    assert sweep(str(folder / "toy.yaml"), Asked(folder / "dir")) == 0
    return folder / "dir"


@pytest.mark.full
def test_grid_with_a_kill(whole, tmp_path):
    """A grid that was killed, on two workers, ends on one as if it had run through there."""
    file = whole.parent / "toy.yaml"
    process = start(file, tmp_path / "killed", "--workers", "2")
    kill_after(process, tmp_path / "killed", 12, 0.1)
    code, out = finish(start(file, tmp_path / "killed"))
    assert code == 0, out
    assert lasting(summary_of(tmp_path / "killed")) == lasting(summary_of(whole))
    assert lasting_report(tmp_path / "killed") == lasting_report(whole)
    assert_exactly_once(tmp_path / "killed", 7)


@pytest.mark.full
def test_processes(whole, tmp_path):
    """Two processes of a launcher are one worker: they share each cell's samples, and give the same figures."""
    code, out = finish(start(whole.parent / "toy.yaml", tmp_path, "--only", "strategy=uniform", processes=2))
    assert code == 0, out
    assert out.count("results  ") == 1, "one process prints"
    alone = lasting(summary_of(whole))["cells"]
    for ident, row in lasting(summary_of(tmp_path))["cells"].items():
        assert row["state"] == ("pending" if row["params"]["set"] else "done")
        assert row == alone[ident] or row["state"] == "pending"
