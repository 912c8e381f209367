"""What `vtc report` keeps apart: runs that cannot be compared, and what sweeps add to a page."""

import csv
import io
import json
import re
import shutil
from xml.etree.ElementTree import Element

import pytest

from tests.helpers_report import EVIL, Page, demo_job, made, sweep
from tests.helpers_results import MODEL
from tests.test_report import grid_of, written
from vtc.eval.report import plots, report
from vtc.eval.report.read import read
from vtc.eval.report.search import settings, shown, verdict
from vtc.eval.report.sections import differences, split

OTHERS = {
    "prompt": ({"system": "Be brief."}, {}, "demo: prompt.system 'Be brief.' instead of None"),
    "dialect": ({"dialect": "lmms"}, {}, "demo: dialect 'lmms' instead of 'llava'"),
    "split": ({"split": "tune", "data": {"split": "tune"}}, {}, "demo: split 'tune' instead of 'test'"),
    "data": ({"data": {"revision": "2"}}, {}, "demo: data.revision '2' instead of '1'"),
    "length": ({"max_new_tokens": 9}, {}, "demo: max_new_tokens 9 instead of 4"),
    "limit": ({"n": 40}, {}, "demo: 40 samples instead of 60"),
    "checkpoint": ({}, {"digest": "ff"}, "model: digest 'ff' instead of '00'"),
}


@pytest.fixture(autouse=True)
def empty_plots(monkeypatch):
    """Figures against costs are drawn in test_report.py; here nothing looks at them."""
    monkeypatch.setattr(plots, "scatter", lambda *given: Element("svg"))


def rows_of(text: str) -> list[dict]:
    """The rows of report.csv."""
    return list(csv.DictReader(io.StringIO(text)))


def sections_of(html: str) -> list[str]:
    """The parts of the page that hold a section of runs."""
    return [part for part in html.split("<section>") if re.search(r'<h2 id="section-\d+"', part)]


@pytest.mark.parametrize("name", OTHERS)
def test_incomparable_runs_are_separated(name, tmp_path):
    """Another prompt, dialect, split, data, length, limit or checkpoint: two sections, which say what differs."""
    about, model, said = OTHERS[name]
    runs = {"none": 0.9, "hiprune-keep0.25": 0.8, "uniform-keep0.25": 0.6}
    mine = made(tmp_path / "mine", [demo_job(*run) for run in runs.items()])
    jobs = [demo_job("none", 0.9, **about), demo_job("fastv-keep0.25", 0.7, **about)]
    other = made(tmp_path / "other", jobs, {**MODEL, **model})
    one, two = split(entry for source in read([mine, other]) for entry in source.entries)
    assert [entry.name for entry in one.entries] == ["none", "hiprune-keep0.25", "uniform-keep0.25"]
    assert [entry.name for entry in two.entries] == ["none", "fastv-keep0.25"]
    assert differences(one, two) == [said]
    texts = written(mine, other, output=tmp_path / "out")
    first, second = sections_of(texts["report.html"])
    assert "fastv" not in first
    assert "hiprune" not in second
    assert "Not compared with section 1" in Page(f"<section>{second}").text
    assert said in Page(texts["report.html"]).text
    assert {(row["section"], row["run"]) for row in rows_of(texts["report.csv"])} == {
        ("1", "none"), ("1", "hiprune-keep0.25"), ("1", "uniform-keep0.25"), ("2", "none"), ("2", "fastv-keep0.25"),
    }  # fmt: skip


def test_comparable_folders_share_a_section(tmp_path):
    """Equal conditions in two folders: one section, the run that both have once, pairs across the folders tested."""
    first = made(tmp_path / "one", [demo_job("none", 0.9), demo_job("hiprune-keep0.25", 0.8)])
    second = made(tmp_path / "two", [demo_job("none", 0.9), demo_job("uniform-keep0.25", 0.4)])
    grid = grid_of(first, second)
    assert grid.section.labels == ["none", "hiprune", "uniform"]
    assert grid.section.duplicates == 1
    assert grid.cells[2, "demo"].p_none < 0.05
    assert grid.cells[2, "demo"].p_best < 0.05
    assert "1 runs were in several folders" in written(first, second, output=tmp_path / "out")["report.md"]


def test_warnings(tmp_path):
    """Different versions, batches and failed samples are said in the section."""
    folder = made(tmp_path / "mixed", [demo_job("none", 0.9), demo_job("hiprune-keep0.25", 0.8)])
    path = folder / "results.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["runs"][1]["versions"]["torch"] = "0.0.1"
    data["runs"][1]["generation"]["batch_size"] = 8
    data["runs"][1]["tasks"]["demo"] |= {"n": 58, "n_errors": 2, "first_error": "RuntimeError: no way"}
    path.write_text(json.dumps(data), encoding="utf-8")
    text = Page(written(folder)["report.html"]).text
    assert "different versions of torch: 0.0.1" in text
    assert "Times are not comparable: batches of 1, 8 samples" in text
    assert "2 samples failed" in text
    assert "RuntimeError: no way" in text


def test_without_the_full_model(tmp_path):
    """A section without none has figures and a best run, no comparison, and says so."""
    folder = made(tmp_path / "alone", [demo_job("hiprune-keep0.25", 0.8), demo_job("uniform-keep0.25", 0.4)])
    grid = grid_of(folder)
    assert grid.baseline is None
    assert grid.cells[0, "demo"].compared is None
    assert grid.cells[1, "demo"].p_best < 0.05
    assert "WITHOUT the full model" in written(folder)["report.md"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A sweep with a search, and its report."""
    folder = sweep(tmp_path_factory.mktemp("sweeps") / "tuning")
    return folder, written(folder)


def test_sweep(searched):
    """Cells of other splits are other sections; state, failures, best files and the held-out statement are there."""
    folder, texts = searched
    page = Page(texts["report.html"])
    assert len(sections_of(texts["report.html"])) == 2
    assert "12 cells: 10 done, 1 failed, 1 pending" in page.text
    assert "This sweep is not complete: 2 cells have no results." in page.text
    said = "Holds on the held-out split (test): yes, at least as good as the paper's default, difference +10.0 ± 3.0"
    assert f"{said} (paired bootstrap, p = 0.004)" in page.text
    assert f"ConfigError: no {EVIL}" in page.text
    assert "strategy=hiprune keep=0.25 alpha=7" in page.text
    assert "<b>" not in texts["report.html"]
    assert (folder / "best" / "accuracy.yaml").read_text(encoding="utf-8") in page.text
    assert "keep: 0.25" in texts["report.md"]
    assert "name: tuning" in page.text
    data = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    done = {cell["id"]: cell for cell in data["cells"] if cell["state"] == "done"}
    rows = [row for row in rows_of(texts["report.csv"]) if row["primary"] == "1"]
    assert {row["cell"]: row["role"] for row in rows} == {ident: cell["role"] for ident, cell in done.items()}
    for row in rows:
        assert row["settings"] == settings(done[row["cell"]]["params"])
    trials = next(table for table in page.tables if table[0][:2] == ["trial", "state"])
    for trial, row in zip(data["search"]["trials"], trials[1:]):
        value = (trial["values"] or {}).get("accuracy")
        assert row[0] == str(trial["number"])
        assert row[3] == ("-" if value is None else f"{100 * value:.1f}")
    importance = next(table for table in page.tables if table[0] == ["parameter", "share, %"])
    assert importance[1:] == [["alpha", "75.0"], ["object_layer", "25.0"]]


def test_cells_are_paired_with_their_baseline(searched):
    """Runs of different cells are compared sample by sample with none of the same split."""
    folder, _ = searched
    tune, held = split(entry for source in read([folder]) for entry in source.entries)
    assert [entry.cell["role"] for entry in held.entries] == ["baseline", "heldout", "heldout"]
    assert tune.labels[:3] == ["none", "hiprune alpha=0.1", "hiprune alpha=0.15"]
    texts = written(folder)
    for row in rows_of(texts["report.csv"]):
        if row["primary"] == "1" and row["strategy"] == "hiprune":
            assert row["p_none_holm"]
            assert row["relative"]


def test_verdict(searched):
    """No, and what is unknown, are said too."""
    folder, _ = searched
    data = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    no = {**data, "heldout": {**data["heldout"], "holds": False}}
    assert verdict(no).text.startswith("Holds on the held-out split (test): no,")
    assert verdict(no).kind == "bad"
    chance = {**data, "heldout": {**data["heldout"], "difference": {"value": 0.01, "stderr": 0.02, "p": 0.6}}}
    assert "difference +1.0 ± 2.0 (paired bootstrap, p = 0.6, not significant)" in verdict(chance).text
    assert verdict(chance).kind == "bad"
    unknown = {**data, "heldout": {"split": "test", "objective": "accuracy"}}
    assert verdict(unknown).text.startswith("Holds on the held-out split (test): not known, difference -.")


def test_objectives_are_printed_in_their_scale():
    """Shares as per cent, points and FLOPs as they are."""
    assert shown(0.5, {"task": "demo", "figure": "accuracy"}) == "50.0"
    assert shown(0.5, {"task": None, "figure": "relative"}, "+") == "+50.0"
    assert shown(1512.25, {"task": "mme", "figure": "accuracy"}) == "1512"
    assert shown(4.145e8, {"task": None, "figure": "prefill_flops"}) == "0.4145"
    assert shown(0.0123, {"task": None, "figure": "first_token"}) == "12.3"
    assert shown(21.9, {"task": None, "figure": "tokens"}) == "21.9"
    assert shown(None, None) == "-"


def test_grid_without_a_search(searched, tmp_path):
    """A sweep that searched nothing has no trials and no statement; a page of one is complete."""
    folder = shutil.copytree(searched[0], tmp_path / "grid")
    path = folder / "sweep.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data |= {"search": None, "heldout": None, "best": [], "cells": [c for c in data["cells"] if c["state"] == "done"]}
    path.write_text(json.dumps(data), encoding="utf-8")
    text = Page(report([folder])[0].read_text(encoding="utf-8")).text
    assert "a sweep with 10 cells: 10 done." in text
    assert "Trials" not in text
    assert "not complete" not in text
