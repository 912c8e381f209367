"""`vtc report` on a folder that the real runner wrote: its numbers, its tests, its bad input."""

import csv
import io
import json
import re
import shutil

import pytest

from tests.helpers_report import EVIL, Page, demo_job, made, over_tasks, ran, with_knobs
from tests.helpers_results import MODEL
from vtc.cli import main
from vtc.core.errors import ConfigError
from vtc.eval.report import report
from vtc.eval.report.measured import FIRST
from vtc.eval.report.read import read
from vtc.eval.report.section_grid import measure
from vtc.eval.report.sections import split
from vtc.eval.report.significance import MOST_REPLICATES, front, holm, replicates
from vtc.eval.results import statistics
from vtc.eval.results.samples import read_log, read_times
from vtc.eval.results.scoring import scored
from vtc.eval.showing.console import scaled
from vtc.eval.tasks import TASKS

FILES = ("report.html", "report.md", "report.csv")
NO_ATTRIBUTES = re.compile(r"\s(?:src|srcset|href|action|data|poster|xlink:href)=\"([^\"]*)\"")


def grid_of(*folders):
    """The grid of the only section."""
    (section,) = split(entry for source in read(folders) for entry in source.entries)
    return measure(section)


def written(folder, *others, output=None) -> dict[str, str]:
    """The files of a report, by name."""
    paths = report([folder, *others], output)
    assert tuple(path.name for path in paths) == FILES
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """none, uniform, hiprune and downsample with two budgets, 14 samples, on the demo model."""
    return ran(tmp_path_factory.mktemp("runs") / "grid")


@pytest.fixture(scope="module")
def texts(folder):
    """Its report."""
    return written(folder)


@pytest.fixture(scope="module")
def results(folder):
    """Its results.json."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_numbers_are_those_of_the_results(texts, results):
    """Every score stands in HTML, Markdown and CSV as in results.json, with its error and relative to none."""
    page = Page(texts["report.html"])
    rows = {(row["run"], row["figure"]): row for row in csv.DictReader(io.StringIO(texts["report.csv"]))}
    assert len(rows) == sum(len(run["tasks"]["demo"]["figures"]) for run in results["runs"])
    for run in results["runs"]:
        result = run["tasks"]["demo"]
        for name, figure in result["figures"].items():
            row = rows[run["name"], name]
            assert float(row["value"]) == figure["value"]
            assert float(row["stderr"]) == figure["stderr"]
            assert row["key"] == result["key"]
        compared, row = results["comparison"]["demo"][run["name"]], rows[run["name"], "macro"]
        assert float(row["relative"]) == compared["relative"]
        assert float(row["difference"]) == compared["difference"]["value"]
        assert float(row["loyalty"]) == compared["loyalty"]
        assert float(row["kept"]) == pytest.approx(run["method"]["keep"] or 1, abs=0.01)
        kind = " (blur)" if run["method"]["kind"] == "downsample" else ""
        label = run["method"]["name"] + kind + (f", {run['method']['budget']}" if run["method"]["budget"] else "")
        figure = result["figures"]["macro"]
        shown = f"{scaled(figure['value'], 100)} ± {scaled(figure['stderr'], 100)}"
        assert page.row(label, "demo: macro, %").startswith(shown)
        line = next(x for x in texts["report.md"].splitlines() if x.strip("| *").startswith(label.replace("_", "\\_")))
        assert shown in line
        for kind, category in result["categories"].items():
            cell = page.row(label, f"{kind} (n = {category['n']})")
            assert cell == f"{scaled(category['value'], 100)} ± {scaled(category['stderr'], 100)}"
        flops = result["prefill_flops"]["ratio"]
        costs = next(t for t in page.tables if "prefill GFLOPs" in t[0])
        row = next(row for row in costs if row[0] == label)
        assert row[costs[0].index("FLOPs, % of none")] == scaled(flops, 100)


def test_provenance(texts, results):
    """Versions, digest, data and all run keys are on the page and in the Markdown."""
    for text in (texts["report.html"], texts["report.md"]):
        for run in results["runs"]:
            assert run["tasks"]["demo"]["key"] in text
            assert run["model"]["digest"] in text
            assert run["created"] in text.replace("\\", "")
        for package, version in results["runs"][0]["versions"].items():
            assert package in text
            assert version in text.replace("\\", "")


def test_time_to_first_token(folder):
    """The median of vision + selection + prefill over the samples of the log of times."""
    grid = grid_of(folder)
    for measured in grid.cells.values():
        rows = read_times(folder / "times" / f"{measured.entry.name}.demo.jsonl").values()
        sums = sorted(sum(row["seconds"][part] for part in FIRST) for row in rows)
        assert measured.first[0] == pytest.approx((sums[6] + sums[7]) / 2)


def test_tests_are_those_of_statistics(folder):
    """p is that of the paired bootstrap on the logs, with the report's replicates, then corrected over all runs."""
    grid, task = grid_of(folder), TASKS["demo"]()
    rows = {}
    for entry in grid.section.entries:
        rows[entry.name] = scored(task, read_log(folder / "samples" / f"{entry.name}.demo.jsonl")[1].values())
    p = {}
    for i, entry in enumerate(grid.section.entries):
        if not entry.full:
            found = statistics.compare(task, rows[entry.name], rows["none"], grid.replicates)
            p[i] = found["difference"]["p"]
            assert grid.cells[i, "demo"].p_none == p[i]
    assert [grid.cells[i, "demo"].holm_none for i in p] == holm(list(p.values()))
    assert grid.tests == {"demo": (len(p), len(p) - len(grid.budgets))}
    for budget in grid.budgets:
        best = max(budget.members, key=lambda i: -1 if grid.section.entries[i].blurred else grid.score(i)[0])
        assert budget.best == best


def test_holm():
    """By hand: 0.01 x 4; 0.02 x 3; max(0.03 x 2, 0.06); max(0.5, ...); never above 1; ties keep their order."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.04, 0.03]) == pytest.approx([0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
    for tests in (1, 24, 400):
        assert tests * 2 / (replicates(tests) + 1) < 0.05
    assert replicates(10**9) == MOST_REPLICATES


def test_front():
    """Cheaper or better than all others; of equal points the first."""
    assert front([(3, 9), (1, 5), (2, 5), (2, 7), (3, 9), (4, 8)]) == [1, 3, 0]
    assert front([]) == []


def test_deterministic(folder, texts, tmp_path):
    """The same folder, also elsewhere, gives the same bytes."""
    assert written(folder, output=tmp_path / "again") == texts
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    assert written(copy) == texts


def test_page_is_self_contained(texts):
    """No address but anchors of the page that exist; ids are unique; tags are balanced; under 1.5 MB."""
    html = texts["report.html"]
    page = Page(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    for link in NO_ATTRIBUTES.findall(html):
        assert link == "data:," or (link.startswith("#") and link[1:] in page.ids), link
    assert not re.search(r"url\((?!#)|@import|https?://(?!arxiv)", html)
    assert len(html.encode()) < 1_500_000


def test_escaping(tmp_path):
    """A strategy, a model and a note named like markup stay text everywhere."""
    jobs = [demo_job("none", 0.9), demo_job("hiprune-keep0.25", 0.8)]
    folder = made(tmp_path / "evil", jobs, {**MODEL, "id": EVIL})
    path = folder / "results.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["runs"][1]["method"]["name"] = EVIL
    data["runs"][1]["notes"] = [EVIL]
    path.write_text(json.dumps(data), encoding="utf-8")
    texts = written(folder)
    assert "<b>" not in texts["report.html"]
    assert texts["report.html"].count("<script>") == 1
    assert EVIL in Page(texts["report.html"]).text
    assert "<b>" not in texts["report.md"]
    assert "<script>" not in texts["report.md"]
    assert {row["strategy"] for row in csv.DictReader(io.StringIO(texts["report.csv"]))} == {"none", EVIL}


def test_several_tasks(tmp_path):
    """The mean over tasks relative to none ranks the runs, and stands in the table and the plots."""
    folder = over_tasks(tmp_path / "tasks")
    grid, summary = grid_of(folder), json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for i, entry in enumerate(grid.section.entries):
        expected = summary["average"][entry.name]
        assert grid.average(i) == expected
        assert grid.score(i)[0] == pytest.approx(100 * expected["value"])
    page = Page(written(folder)["report.html"])
    average = summary["average"]["hiprune-keep0.25"]
    shown = f"{scaled(average['value'], 100)} ± {scaled(average['stderr'], 100)}"
    assert page.row("hiprune, 0.25", "average, % of none").startswith(shown)
    assert "Mean over tasks against time to first token" in page.text


def test_settings_and_seeds_tell_runs_apart(tmp_path):
    """Runs of one name get the settings in which they differ, then the seed; means over seeds choose the best."""
    one, two = (with_knobs(demo_job("hiprune-keep0.25", 0.6 + alpha), alpha=alpha) for alpha in (0.1, 0.2))
    folders = [made(tmp_path / "a", [demo_job("none", 0.9), one]), made(tmp_path / "b", [two])]
    seeded = demo_job("random-keep0.25", 0.5, seed=3)
    again = demo_job("random-keep0.25", 0.4, seed=4)
    again.identity["seed"], again.key = 1, "another"
    folders += [made(tmp_path / "c", [seeded]), made(tmp_path / "d", [again])]
    grid = grid_of(*folders)
    names = ["none", "hiprune alpha=0.1", "hiprune alpha=0.2", "random (seed 0)", "random (seed 1)"]
    assert grid.section.labels == names
    assert grid.variant_score(3) == grid.variant_score(4) == pytest.approx((grid.score(3)[0] + grid.score(4)[0]) / 2)
    assert grid.budgets[0].best == 2
    assert "random, 0.25 | 2 |" in written(*folders, output=tmp_path / "out")["report.md"]


def test_without_logs(folder, results, tmp_path):
    """Results without their logs still have figures and comparisons; tests are said to be missing."""
    copy = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("samples", "times", "report.*"))
    texts = written(copy)
    assert "No tests" in texts["report.md"]
    rows = csv.DictReader(io.StringIO(texts["report.csv"]))
    (row,) = [row for row in rows if row["run"] == "hiprune-keep0.25" and row["primary"] == "1"]
    compared = results["comparison"]["demo"]["hiprune-keep0.25"]
    assert float(row["relative"]) == compared["relative"]
    assert float(row["difference_stderr"]) == compared["difference"]["stderr"]
    assert row["p_none_holm"] == ""


@pytest.mark.parametrize(
    "name, text, said",
    [
        (None, None, "neither sweep.json nor results.json"),
        ("results.json", "{", "cannot be read as JSON"),
        ("results.json", '{"schema": "vtc.eval.results/99", "runs": []}', "vtc.eval.results/99"),
        ("results.json", '{"schema": "vtc.eval.results/3", "runs": []}', "has no runs"),
        ("results.json", '{"schema": "vtc.eval.results/3", "runs": [{"schema": "x"}]}', "runs[0].schema='x'"),
        ("results.json", '{"schema": "vtc.eval.results/3", "runs": [{"schema": "vtc.eval.run/3"}]}', "damaged"),
        ("sweep.json", '{"schema": "vtc.sweep/2"}', "vtc.sweep/1"),
        ("sweep.json", '{"schema": "vtc.sweep/1"}', "damaged"),
        ("sweep.json", '{"schema": "vtc.sweep/1", "cells": []}', "no cell of the sweep is done"),
    ],
)
def test_bad_input_is_one_line(name, text, said, tmp_path, capsys):
    """The command line says in one line what is wrong, and exits with 2."""
    if name:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(tmp_path)])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1
    assert said in error


def test_places(folder, tmp_path, capsys):
    """No folder, the same one twice, and nowhere to write are refused; the paths are printed."""
    with pytest.raises(ConfigError, match="is no folder"):
        report([tmp_path / "none"])
    with pytest.raises(ConfigError, match="is given twice"):
        report([folder, folder])
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written"):
        report([folder], tmp_path / "file")
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(folder), "--output", str(tmp_path / "out")])
    assert exit_.value.code == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["html", "md", "csv"]
