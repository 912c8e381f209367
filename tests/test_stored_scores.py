"""Scores are made once and read from then on; folders of an earlier vtc (tests/fixtures/results) give the figures that
stand beside them, as the code of that time wrote them."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from vtc.eval.report import report
from vtc.eval.results.scoring import read_scored
from vtc.eval.runner import evaluate
from vtc.eval.running.eval_settings import EvalSettings
from vtc.eval.score import score_folder
from vtc.eval.tasks import TASKS

OLD = Path(__file__).parent / "fixtures" / "results"


@pytest.fixture
def folder(tmp_path):
    """A copy of what `vtc eval` left."""
    return shutil.copytree(OLD / "eval", tmp_path / "eval")


def table(path: Path) -> list[dict]:
    """A report's rows, numbers as numbers."""

    def read(text: str) -> str | float:
        try:
            return float(text)
        except ValueError:
            return text

    with path.open(encoding="utf-8", newline="") as file:
        return [{name: read(text) for name, text in row.items()} for row in csv.DictReader(file)]


def assert_reported(folder: Path, name: str) -> None:
    """`vtc report` gives every column of that time, with the values of that time."""
    report([folder])
    rows, expected = table(folder / "report.csv"), table(OLD / f"{name}.report.csv")
    assert len(rows) == len(expected)
    for row, then in zip(rows, expected):
        texts = {key: value for key, value in then.items() if isinstance(value, str)}
        assert {key: row[key] for key in texts} == texts
        numbers = {key: value for key, value in then.items() if isinstance(value, float)}
        assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-9)


@pytest.mark.parametrize("name", ["eval", "sweep"])
def test_report(tmp_path, name):
    """Figures, errors, tests and times of a folder of `vtc eval`, and of a sweep."""
    assert_reported(shutil.copytree(OLD / name, tmp_path / name), name)


def test_table(folder, capsys, monkeypatch):
    """The table of `vtc eval`, from the logs alone."""
    monkeypatch.setenv("COLUMNS", "160")
    shutil.rmtree(folder / "runs")
    (folder / "results.json").unlink()
    score_folder(folder, None, None, None, False)
    printed = capsys.readouterr().out.splitlines()
    cells = [line.split() for line in (OLD / "eval.table.txt").read_text(encoding="utf-8").splitlines()]
    body = [row for row in cells if row and row[0] in ("none", "uniform", "downsample")]
    assert len(body) == 3
    found = [row for row in map(str.split, printed) if row and row[0] in ("none", "uniform", "downsample")]
    assert sorted(found) == sorted(body)


def calls(monkeypatch) -> list:
    """The texts that the demo benchmark scores from now on."""
    found, score = [], TASKS["demo"].score
    monkeypatch.setattr(TASKS["demo"], "score", lambda *one: found.append(one[-1]) or score(*one))
    return found


def test_an_answer_is_scored_once(tmp_path, monkeypatch):
    """42 answers are scored 42 times by `vtc eval`; all that reads them does not score."""
    texts = calls(monkeypatch)
    wanted = EvalSettings(tmp_path, strategies=("none", "hiprune"), keeps=("0.25",), limit=21)
    evaluate(wanted, quiet=True)
    assert len(texts) == 42
    report([tmp_path])
    evaluate(wanted, quiet=True)
    assert len(texts) == 42


def test_stored_scores_are_not_made_again(folder, monkeypatch):
    """The logs have scores of this version of the task."""
    texts = calls(monkeypatch)
    assert_reported(folder, "eval")
    assert texts == []


@pytest.mark.parametrize("damage", ["missing", "null", "no figure", "version", "dialect", "no header"])
def test_scores_that_do_not_hold(folder, monkeypatch, damage):
    """An older log without scores, or with those of another version, is scored when it is read."""
    path = folder / "samples" / "uniform-keep0.11.demo.jsonl"
    header, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    for row in rows:
        if damage == "missing":
            del row["score"]
        else:
            row["score"] = {"null": None, "no figure": {"correct": 1e30, "parsed": 1}}.get(damage, {"correct": 0.0})
    if damage in ("version", "dialect"):
        header["identity"]["task"][damage] = {"version": 1, "dialect": "lmms"}[damage]
    task = TASKS["demo"]()
    if damage == "no figure":
        monkeypatch.setattr(TASKS["demo"], "tally", lambda self, rows: {"n": 1.0, "right": rows[0]["score"]["new"]})
        monkeypatch.setattr(TASKS["demo"], "score", lambda self, reference, text: {"correct": 1.0, "new": 1.0})
    texts = calls(monkeypatch)
    lines = rows if damage == "no header" else [header, *rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = read_scored(path, task)[1].values()
    assert len(texts) == len(rows) == 21
    right = sum(row["score"]["correct"] for row in found)
    assert right == (21 if damage == "no figure" else 15)


def test_new_scores_are_stored(folder, monkeypatch):
    """`vtc eval score` puts the scores of a changed task into the log; the report then reads those."""
    path = folder / "samples" / "uniform-keep0.11.demo.jsonl"
    before = path.read_text(encoding="utf-8")
    score_folder(folder, None, None, None, False)
    assert path.read_text(encoding="utf-8") == before
    monkeypatch.setattr(TASKS["demo"], "score", lambda *_: {"correct": 0.25})
    score_folder(folder, None, None, None, False)
    texts = calls(monkeypatch)
    report([folder])
    value = {row["run"]: row["value"] for row in table(folder / "report.csv") if row["figure"] == "accuracy"}
    assert value == dict.fromkeys(("none", "uniform-keep0.11", "downsample-keep0.11"), 0.25)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["score"] for row in rows[1:]] == [{"correct": 0.25}] * 21
    assert rows[0] == json.loads(before.splitlines()[0])
    assert texts == []
