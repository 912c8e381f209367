"""Results, comparisons, tables and the plot of hand-made jobs."""

import io
import json
import math

import pytest
from PIL import Image

from tests.helpers_results import MODEL, Points, Thousand, Toy, job, save, strict
from vtc.eval.results.compare import NO_DOWNSAMPLE
from vtc.eval.results.runs import write_run, write_summary
from vtc.eval.showing.chart import draw
from vtc.eval.showing.console import print_summary
from vtc.io.terminal import Terminal

FULL = "yyyyyyyynn"  # what the full model answers; y is right
JOBS = {
    "none": FULL,
    "hiprune-keep0.25": "yyyyyynynn",
    "hiprune-keep0.1": "yyynnnynny",
    "fastv-published": "yyyyyyyyn?",
    "downsample-keep0.25": "yyyynnyynn",
    "downsample-keep0.1": "ynnnnnnnnn",
}


def written(output, *jobs, model=MODEL, present=None) -> dict:
    """The summary of jobs; present: those that run now, the others are only in the folder."""
    for one in jobs:
        save(output, one)
        write_run(output, model, one, [])
    write_summary(output, model, list(jobs) if present is None else present)
    return strict(output / "results.json")


def printed(summary: dict, width: int | None = None, **options) -> str:
    """The tables; width: of a terminal, None for a pipe."""
    file = io.StringIO()
    terminal = {} if width is None else {"width": width, "force_terminal": True, "color_system": None}
    print_summary(summary, "out", "plot.png", Terminal(file=file, **terminal, **options))
    return file.getvalue()


def test_run(tmp_path):
    """What a log without scores says is scored when it is read."""
    one = job("hiprune-keep0.25", "yy?n!y", categories="abb")
    del one.times["0000"]
    save(tmp_path, one)
    write_run(tmp_path, MODEL, one, ["a note"])
    run = strict(tmp_path / "runs" / "hiprune-keep0.25.json")
    assert {"created", "versions", "git", "method", "seeds", "generation", "tokens_are"} <= set(run)
    assert (run["schema"], run["model"], run["notes"]) == ("vtc.eval.run/3", MODEL, ["a note"])
    task = run["tasks"]["toy"]
    assert {key: task[key] for key in one.identity["task"]} == one.identity["task"]
    assert (task["n"], task["n_errors"], task["n_unparsed"], task["first_error"]) == (5, 1, 1, "RuntimeError: no way")
    assert (task["primary"], task["scale"], task["key"]) == ("accuracy", 100.0, one.key)
    assert task["figures"]["accuracy"]["value"] == pytest.approx(3 / 5)
    assert task["figures"]["accuracy"]["stderr"] == pytest.approx(math.sqrt(0.6 * 0.4 / 5), rel=0.1)
    assert {name: (c["n"], c["value"]) for name, c in task["categories"].items()} == {"a": (2, 0.5), "b": (3, 2 / 3)}
    assert task["tokens"] == {
        "visual_before": 100, "visual_after": 25, "visual_average": 25, "kept": 0.25, "text_in": 10, "out": 1
    }  # fmt: skip
    assert task["prefill_flops"] == {"before": 200, "after": 50, "ratio": 0.25}
    assert task["paper_flops"] == {"before": None, "after": None, "ratio": None}
    assert task["seconds"]["prefill"] == {"median": 0.2, "mean": pytest.approx(0.2)}


def test_nothing_known(tmp_path):
    """A run in which everything failed, or nothing was timed, has nulls and still a table and a plot."""
    broken = job("none", "!!")
    untimed = job("hiprune-keep0.25", "yy")
    untimed.times.clear()
    summary = written(tmp_path, broken, untimed)
    task = summary["runs"][0]["tasks"]["toy"]
    assert task["figures"] == {"accuracy": {"value": None, "stderr": None, "ci95": None}}
    assert (task["n"], task["n_errors"], task["tokens"]["kept"]) == (0, 2, None)
    assert summary["runs"][1]["tasks"]["toy"]["seconds"]["total"] == {"median": None, "mean": None}
    assert summary["comparison"]["toy"]["hiprune-keep0.25"]["relative"] is None
    assert "none: 2 samples FAILED, the first with RuntimeError: no way" in printed(summary)
    draw(summary, tmp_path / "plot.png")


def test_answer_that_cannot_be_scored(tmp_path):
    """It becomes an error of its sample, not of the evaluation."""

    class Picky(Toy):
        def score(self, reference, text):
            if text == "?":
                raise ValueError("no\nidea")
            return super().score(reference, text)

    one = job("none", "yy?", task=Picky())
    task = written(tmp_path, one)["runs"][0]["tasks"]["toy"]
    assert (task["n"], task["n_errors"], task["first_error"]) == (2, 1, "ValueError: no idea")


def test_run_is_completed_or_begun_anew(tmp_path):
    """Other tasks of the same method on the same model stay, and without new answers so does the date."""
    path = tmp_path / "runs" / "none.json"
    write_run(tmp_path, MODEL, job("none", "yn"), ["first"])
    path.write_text(json.dumps({**json.loads(path.read_text()), "created": "then", "git": "before"}))
    write_run(tmp_path, MODEL, job("none", "yy", task=Points()), None)
    run = strict(path)
    assert (list(run["tasks"]), run["created"], run["git"], run["notes"]) == (
        ["toy", "points"], "then", "before", ["first"]
    )  # fmt: skip
    write_run(tmp_path, MODEL, job("none", "yy", task=Thousand()), [])
    run = strict(path)
    assert len(run["tasks"]) == 3
    assert run["created"] != "then"
    write_run(tmp_path, {**MODEL, "digest": "11"}, job("none", "yn"), [])
    assert list(strict(path)["tasks"]) == ["toy"]
    path.write_text('{"schema": "vtc')
    write_run(tmp_path, MODEL, job("none", "yn"), None)
    assert list(strict(path)["tasks"]) == ["toy"]


def test_comparison(tmp_path):
    """Each run beside none, by hand."""
    summary = written(tmp_path, *[job(name, texts) for name, texts in JOBS.items()])
    assert summary["schema"] == "vtc.eval.results/3"
    assert [run["name"] for run in summary["runs"]] == summary["present"] == list(JOBS)
    compared = summary["comparison"]["toy"]
    assert list(compared) == list(JOBS)
    entry = compared["hiprune-keep0.1"]
    assert (entry["n"], entry["n_errors"]) == (10, 0)
    assert entry["relative"] == pytest.approx(5 / 8)
    assert entry["difference"]["value"] == pytest.approx(-0.3)
    assert entry["difference"]["n"] == 10
    assert entry["mcnemar"] == {"b": 4, "c": 1, "p": pytest.approx(2 * 6 / 32)}
    assert entry["loyalty"] == 0.5
    assert entry["differences"]["accuracy/a"]["value"] == pytest.approx((3 - 4) / 5)
    assert compared["none"]["difference"] == {"value": 0.0, "stderr": 0.0, "ci95": [0.0, 0.0], "p": 1.0, "n": 10}
    assert compared["fastv-published"]["loyalty"] == 0.9
    assert compared["fastv-published"]["relative"] == 1.0
    sensitive = {name: entry["sensitive"] for name, entry in compared.items()}
    quarter, tenth = {"n": 2, "downsample": "downsample-keep0.25"}, {"n": 7, "downsample": "downsample-keep0.1"}
    assert sensitive == {
        "none": {**tenth, "value": 1.0},
        "hiprune-keep0.25": {**quarter, "value": 1.0},
        "hiprune-keep0.1": {**tenth, "value": pytest.approx(3 / 7)},
        "fastv-published": {**tenth, "value": 1.0},
        "downsample-keep0.25": {**quarter, "value": 0.0},
        "downsample-keep0.1": {**tenth, "value": 0.0},
    }
    assert summary["runs"][4]["method"]["downsample"]["mode"] == "blur"
    assert summary["average"]["hiprune-keep0.1"]["value"] == pytest.approx(5 / 8)
    assert summary["average"]["hiprune-keep0.1"]["stderr"] == pytest.approx(entry["relative_stderr"])


def test_comparison_without(tmp_path):
    """No downsample: the reason is there. No none: numbers of samples only."""
    entry = written(tmp_path / "a", job("none", FULL), job("hiprune-keep0.1", FULL))["comparison"]["toy"]["none"]
    assert (entry["sensitive"], entry["sensitive_reason"]) == (None, NO_DOWNSAMPLE)
    summary = written(tmp_path / "b", job("hiprune-keep0.1", "yn!"), job("downsample-keep0.1", "yyy"))
    assert summary["comparison"]["toy"]["hiprune-keep0.1"] == {
        "n": 2, "n_errors": 1, "relative": None, "difference": None
    }  # fmt: skip
    assert summary["average"]["hiprune-keep0.1"] == {"value": None, "stderr": None, "tasks": []}


def test_failed_samples_are_left_out_of_both(tmp_path):
    """What one of the two did not answer says nothing of their difference."""
    compared = written(tmp_path, job("none", "yy!y"), job("hiprune-keep0.1", "ny!!"))["comparison"]["toy"]
    entry = compared["hiprune-keep0.1"]
    assert (entry["n"], entry["n_errors"], entry["difference"]["n"]) == (2, 2, 2)
    assert (entry["relative"], entry["difference"]["value"], entry["loyalty"]) == (0.5, -0.5, 0.5)


def test_other_runs_of_the_folder(tmp_path):
    """Runs that are not evaluated now are compared by their logs, if those hold the same."""
    now = job("none", FULL)
    same = job("hiprune-keep0.25", "yyyyyynynn")
    others = {
        "hiprune-keep0.1": job("hiprune-keep0.1", FULL[:-1]),
        "random-keep0.1": job("random-keep0.1", FULL, dialect="lmms"),
        "random-keep0.2": job("random-keep0.2", FULL, data={"revision": "2"}),
        "random-keep0.3": job("random-keep0.3", FULL, version=2),
        "random-keep0.4": job("random-keep0.4", FULL, system="Be brief."),
        "random-keep0.5": job("random-keep0.5", FULL, max_new_tokens=5),
        "random-keep0.6": job("random-keep0.6", FULL),
        "random-keep0.7": job("random-keep0.7", FULL),
    }
    written(tmp_path, now, same, *others.values())
    save(tmp_path, others["random-keep0.6"], key="another run's")
    (tmp_path / "samples" / "random-keep0.7.toy.jsonl").unlink()
    write_run(tmp_path, {**MODEL, "dtype": "float16"}, job("random-keep0.8", FULL), [])
    summary = written(tmp_path, present=[now])
    assert len(summary["runs"]) == 11
    assert summary["present"] == ["none"]
    assert list(summary["comparison"]["toy"]) == ["none", "hiprune-keep0.25"]
    assert summary["comparison"]["toy"]["hiprune-keep0.25"]["relative"] == pytest.approx(7 / 8)


def tasks(output, runs=("none", "hiprune-keep0.25", "fastv-published"), names=("toy", "points", "thousand")) -> dict:
    """Three runs on a task in per cent, one in points and one of a thousand."""
    kinds = {"toy": Toy, "points": Points, "thousand": Thousand}
    texts = {"none": "yyyyyyyynn" * 4, "hiprune-keep0.25": "yyyyynyynn" * 4, "fastv-published": "yyyyyynynn" * 4}
    pairs = [(name, kinds[task]()) for name in runs for task in names]
    return written(output, *[job(name, texts[name], task=task, pictures=2) for name, task in pairs])


def test_tables(tmp_path):
    """Points are printed as points; the papers' table has every task and the mean of ratios."""
    summary = tasks(tmp_path)
    text = printed(summary)
    assert "task points (dialect llava, test), 40 samples" in text
    first, second, third, papers = text.split("model toy, ")[1:]
    assert "1600.0 ±" in second
    assert "800.0 ±" in third
    assert "80.0 ±" in first
    assert "perception" in second
    assert "of 1000" in third
    assert papers.startswith("3 tasks (dialect llava)")
    lines = {line.split()[0]: line.split() for line in papers.splitlines() if line.strip()}
    assert lines["none"] == ["none", "80.0", "1600.0", "800.0", "100.0", "±", "0.0"]
    mean = 100 * (0.875 + 0.8125 + 0.875) / 3
    assert lines["hiprune"][:5] == ["hiprune", "0.25", "70.0", "1300.0", "700.0"]
    assert lines["hiprune"][5] == f"{mean:.1f}"
    error = summary["average"]["hiprune-keep0.25"]["stderr"]
    assert lines["hiprune"][7] == f"{100 * error:.1f}"


def test_one_task_has_no_table_of_tasks(tmp_path):
    """There it would repeat the first."""
    assert " tasks (" not in printed(tasks(tmp_path, names=("toy",)))


def test_average_names_what_is_missing(tmp_path):
    """An average over fewer tasks than the table's says so."""
    tasks(tmp_path, runs=("none", "hiprune-keep0.25"))
    kept = [job("none", "y" * 40, task=kind(), pictures=2) for kind in (Toy, Points)]
    other = job("none", "y" * 38, task=Thousand(), pictures=2)
    summary = written(
        tmp_path, *kept, other, present=[*kept, other, job("hiprune-keep0.25", "yyyyynyynn" * 4, pictures=2)]
    )
    assert summary["average"]["hiprune-keep0.25"]["tasks"] == ["toy", "points"]
    assert "(2 of 3)" in printed(summary)


@pytest.mark.parametrize("width, loyal, tables", [(60, False, 2), (80, False, 1), (120, False, 1), (200, True, 1)])
def test_width(tmp_path, width, loyal, tables):
    """What does not fit is left out or set in another table, never cut."""
    summary = written(tmp_path, *[job(name, texts) for name, texts in JOBS.items()])
    text = printed(summary, width=width)
    assert "…" not in text
    assert ("loyalty" in text, "sensi-" in text) == (loyal, loyal)
    text = printed(tasks(tmp_path / "more"), width=width)
    assert "…" not in text
    assert all(name in text for name in ("toy", "points", "thousand", "avg"))
    assert text.count("3 tasks") == tables


def test_kinds_of_question(tmp_path):
    """Up to eight have columns."""
    few, many = "abcdefgh", "abcdefghi"
    for categories, shown in ((few, True), (many, False)):
        summary = written(tmp_path / categories, job("none", "y" * 27, categories=categories))
        heads = printed(summary, width=250).splitlines()[2:4]
        assert (" h " in "".join(heads)) == shown
    assert "loyalty" in printed(summary, width=250)
    assert "sensi-" not in printed(summary, width=250), "without downsample nothing is in that column"


def test_names_are_no_markup(tmp_path):
    """Brackets in a name are printed."""
    summary = written(tmp_path, job("none", "yn"), model={**MODEL, "id": "llava[/b]"})
    assert "model llava[/b]" in printed(summary)


@pytest.mark.parametrize("names, columns, rows", [(("toy",), 1, 1), (("toy", "points"), 2, 1)])
def test_plot(tmp_path, names, columns, rows):
    """A panel per task, side by side."""
    path = draw(tasks(tmp_path, names=names), tmp_path / "plot.png")
    with Image.open(path) as picture:
        width, height = picture.size
        assert len(picture.convert("RGB").getcolors(2**20)) > 20
    assert width > 150 * 4 * columns
    assert 150 * 3.5 * rows < height < 150 * 5 * rows


def test_plot_in_rows(tmp_path):
    """No more than three panels beside each other, and labels that say what is counted."""
    from matplotlib.figure import Figure

    summary = tasks(tmp_path)
    summary["comparison"] = {f"{name}{i}": summary["comparison"][name] for i in range(2) for name in ("toy", "points")}
    for run in summary["runs"]:
        run["tasks"] = {f"{name}{i}": run["tasks"][name] for i in range(2) for name in ("toy", "points")}
    drawn, save_figure = [], Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *a, **b: (drawn.append(self), save_figure(self, *a, **b)))
        draw(summary, tmp_path / "plot.png")
    panels = drawn[0].axes
    assert [axes.axison for axes in panels] == [True] * 4 + [False] * 2
    assert [axes.get_ylabel() for axes in panels[:2]] == ["accuracy (%)", "perception (points)"]
    assert panels[0].get_ylim()[1] <= 102
    assert panels[1].get_ylim()[1] > 1600
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["none (all tokens)", "fastv", "hiprune"]
