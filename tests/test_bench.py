"""`vtc bench selection`: what it writes, that both forms pick the same, memory counted, wrong options refused."""

import json

import pytest
import torch

from tests.test_cli import run
from vtc.bench.memory import peak_bytes
from vtc.bench.results import FILE
from vtc.bench.selectors import AGAINST, SELECTORS, inputs_of, measure
from vtc.bench.selectors_run import SelectionOptions
from vtc.bench.selectors_run import run as run_selection
from vtc.core.errors import ConfigError


@pytest.mark.parametrize("against", AGAINST)
@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("tokens, picks", [(40, 7), (40, 40), (3, 1), (700, 170)])
def test_both_forms_pick_the_same(name, tokens, picks, against):
    """What it is compared with and vtc's own, in order; every figure is there."""
    if getattr(SELECTORS[name], against) is None:
        pytest.skip(f"no code of {SELECTORS[name].method} was released")
    row = measure(name, tokens, picks, "cpu", repeats=1, limit=60, against=against)
    assert row.equal
    assert min(row.vtc, row.other, row.random, row.memory) > 0
    assert row.ratio == pytest.approx(row.other / row.vtc)


@pytest.mark.parametrize("quality", ["equal", "steep", "zeros"])
def test_released_dpp_is_the_same_whatever_the_qualities(quality):
    """Few tokens or all could be picked; those of quality 0 come last."""
    inputs = inputs_of(300, torch.device("cpu"))
    values = inputs["quality"]
    steep = {"equal": torch.ones_like(values), "steep": (-9 * values).exp(), "zeros": values * (values > 0.6)}[quality]
    inputs["quality"], k = steep, min(90, int((steep > 0).sum()))
    first_picks = SELECTORS["dpp"].vtc(inputs, k)
    assert first_picks[0] == steep.argmax()  # the first of equal ones, not the largest by rounding
    shifted = {**inputs, "quality": steep.index_fill(0, first_picks[:1], float(steep.max()) * 1.001)}
    found, expected = (getattr(SELECTORS["dpp"], form)(shifted, k) for form in ("vtc", "released"))
    assert torch.equal(found, expected)


def test_another_form_beyond_the_limit_is_left_out():
    """No figure is invented for it."""
    row = measure("coverage", 64, 8, "cpu", repeats=1, limit=0)
    assert (row.other, row.ratio, row.equal) == (None,) * 3


@pytest.mark.parametrize(
    "name, picks, against, words",
    [
        ("covrage", 3, "definition", "'covrage'"),
        ("coverage", 0, "definition", "0 picks"),
        ("dpp", 9, "definition", "9"),
        ("dpp", 3, "paper", "--against 'paper'"),
        ("max-sum", 3, "released", "todre"),
    ],
)
def test_refusals(name, picks, against, words):
    """Unknown selectors and comparisons, no released code, and more picks than tokens."""
    with pytest.raises(ConfigError, match=f"{words}.*possible"):
        measure(name, 8, picks, "cpu", 1, 1, against=against)


def test_threads_are_set_back(tmp_path):
    """They are in the environment of the result."""
    before = torch.get_num_threads()
    options = SelectionOptions(tmp_path, ("max-min",), (16,), (4,), repeats=1, threads=before + 1)
    assert run_selection(options, lambda row: None).environment["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_peak_bytes():
    """What lives at the same time counts together, what was freed does not."""

    def together():
        return [torch.zeros(1000), torch.zeros(500)]

    def one_after_the_other():
        for _ in range(5):
            torch.zeros(1000)

    assert peak_bytes(together, torch.device("cpu")) == 6000
    assert peak_bytes(one_after_the_other, torch.device("cpu")) == 4000


def test_command(capsys, tmp_path):
    """Table, JSON and plot; picks beyond the tokens are left out."""
    options = ("--sizes", "16,48", "--picks", "8,32", "--repeats", "1", "--output", str(tmp_path / "out"))
    code, out, _ = run(capsys, "bench", "selection", "--selectors", "coverage,max-min", *options)
    assert code == 0
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [(row["selector"], row["tokens"], row["picks"]) for row in data["rows"]]
    assert rows == [(name, n, k) for name in ("coverage", "max-min") for n, k in ((16, 8), (48, 8), (48, 32))]
    assert data["environment"]["torch"] == torch.__version__.partition("+")[0] or data["environment"]["torch"]
    assert (tmp_path / "out" / "selection.png").stat().st_size > 5000
    assert out.count("equal") == 6
    assert data["command"].startswith("vtc")
    assert data["definitions"]["equal"]


def measured(capsys, folder, *options):
    """The command on two sizes, its exit code, output and errors."""
    common = ("--selectors", "max-min", "--sizes", "16,48", "--picks", "8", "--repeats", "1", "--output", folder)
    return run(capsys, "bench", "selection", *common, *options)


def test_it_resumes(capsys, tmp_path, monkeypatch):
    """Rows that are there are kept; with other settings the folder is refused, unless it is to be overwritten."""
    measured(capsys, tmp_path)
    rows = json.loads((tmp_path / FILE).read_text())["rows"]
    calls = []
    monkeypatch.setattr("vtc.bench.selectors_run.measure", lambda *a, **k: calls.append(a) or measure(*a, **k))
    assert measured(capsys, tmp_path, "--picks", "8,12")[0] == 0
    assert [call[:3] for call in calls] == [("max-min", 16, 12), ("max-min", 48, 12)]
    assert [row for row in json.loads((tmp_path / FILE).read_text())["rows"] if row["picks"] == 8] == rows
    code, _, err = measured(capsys, tmp_path, "--seed", "1")
    assert (code, err.count("\n"), "seed 0 and 1; possible: another folder, or --overwrite" in err) == (2, 1, True)
    assert measured(capsys, tmp_path, "--seed", "1", "--overwrite")[0] == 0


def test_two_results_are_compared(capsys, tmp_path):
    """Row by row; other sizes are named and refused."""
    for name in "ab":
        measured(capsys, tmp_path / name)
    code, out, _ = run(capsys, "bench", "compare", tmp_path / "a", tmp_path / "b")
    assert (code, out.count("max-min")) == (0, 4)
    rows = out[out.index("max-min") :]  # behind the folders, whose names have numbers
    assert rows.index(" 48 ") > rows.index(" 16 ")
    measured(capsys, tmp_path / "c", "--sizes", "16")
    code, _, err = run(capsys, "bench", "compare", tmp_path / "a", tmp_path / "c")
    assert (code, "tokens [16, 48] and [16]; possible: runs that differ in their times alone" in err) == (2, True)


def test_files_of_earlier_versions_are_refused(capsys, tmp_path):
    """In one line that names the file and the version."""
    old = {"schema": "vtc.bench.selection/1", "environment": {}, "repeats": 3, "seed": 0, "rows": []}
    (tmp_path / FILE).write_text(json.dumps(old))
    code, _, err = measured(capsys, tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{tmp_path / FILE}" in err
    assert "schema='vtc.bench.selection/1'; possible: 'vtc.bench.selection/3'" in err
    assert measured(capsys, tmp_path, "--overwrite")[0] == 0


BAD = {
    "selector": (["--selectors", "coverage,x"], "'x' is unknown"),
    "sizes": (["--sizes", "16,a"], "--sizes"),
    "picks": (["--sizes", "4", "--picks", "9"], "at least one k <= N"),
    "device": (["--device", "tpu"], "--device 'tpu' is not there"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(capsys, tmp_path, name):
    """One line, exit code 2, nothing written."""
    options, words = BAD[name]
    code, _, err = run(capsys, "bench", "selection", *options, "--output", str(tmp_path / "out"))
    assert code == 2
    assert words in err
    assert "possible" in err
    assert not (tmp_path / "out").exists()
