"""Evaluation's sample logs: they survive a kill, refuse another run, and say which sample failed."""

import json

import pytest
import torch

from tests.test_eval import log, settings
from vtc.cli import main
from vtc.core.errors import ConfigError
from vtc.eval.models import Loaded
from vtc.eval.results.counts import nothing
from vtc.eval.results.samples import SampleLog, read_log
from vtc.eval.runner import evaluate
from vtc.eval.tasks.demo import Demo


def test_limit_grows(tmp_path):
    """With a larger limit a run goes on; with a smaller one the figures are of the first samples."""
    for limit, n in ((4, 4), (6, 6), (5, 5)):
        evaluate(settings(tmp_path, strategies=("none",), limit=limit))
        assert json.loads((tmp_path / "runs" / "none.json").read_text())["tasks"]["demo"]["n"] == n
    assert len(log(tmp_path, "none")) == 6


def test_overwrite(tmp_path):
    """--overwrite starts anew."""
    evaluate(settings(tmp_path, strategies=("random",), limit=4))
    evaluate(settings(tmp_path, strategies=("random",), limit=2, seed=3, overwrite=True))
    result = json.loads((tmp_path / "runs" / "random-keep0.25.json").read_text())
    assert len(log(tmp_path, "random-keep0.25")) == 2
    assert result["seeds"] == {"torch": 3, "strategy": 3}


@pytest.mark.parametrize("method", ["prompt", "images", "score"])
def test_failed_sample(tmp_path, monkeypatch, capsys, method):
    """A sample that raises is recorded as that, its neighbours are answered, exit code 1; a restart tries again."""
    good, broken = getattr(Demo, method), ["test-00002"]
    if method == "score":  # sees no doc
        broken = [next(doc["answer"] for doc in Demo().open("test", 3) if doc["id"] in broken)]

    def bad(self, doc, *rest):
        if (doc if method == "score" else doc["id"]) in broken:
            raise RuntimeError("no\nway")
        return good(self, doc, *rest)

    monkeypatch.setattr(Demo, method, bad)
    arguments = ["eval", "--model", "demo", "--strategy", "hiprune", "--keep", "0.5", "--limit", "5", "--output"]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, str(tmp_path)])
    assert stopped.value.code == 1
    assert "1 samples FAILED, the first with RuntimeError: no way" in capsys.readouterr().out
    rows = {row["id"]: row for row in log(tmp_path, "hiprune-keep0.5")}
    assert len(rows) == 5
    assert rows["test-00002"]["error"] == "RuntimeError: no way"
    assert rows["test-00002"]["text"] is None
    result = json.loads((tmp_path / "runs" / "hiprune-keep0.5.json").read_text())["tasks"]["demo"]
    assert (result["n"], result["n_errors"]) == (4, 1)
    broken.clear()
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, str(tmp_path)])
    assert stopped.value.code == 0


def row(ident: str, error: str | None = None, **known) -> dict:
    """A row of a log that says nothing but whether there is an answer."""
    named = {"id": ident, "group": ident, "category": "x", "reference": None, "text": "", "error": error}
    return {**named, **nothing(), "text_in": None, "tokens_out": None, **known}


def test_log(tmp_path):
    """Rows come back; a second writer, a foreign file and damage in the middle are refused."""
    path, given = tmp_path / "samples" / "x.jsonl", (tmp_path, "x", {"method": {"keep": 0.5}})
    one = SampleLog(*given)
    one.append(row("a", text="lines \u2028 of \u0085 other \x1c kinds"), {"batch": 1, "seconds": {}})
    one.append(row("b", "RuntimeError: x"))
    with pytest.raises(ConfigError, match="in use by another process"):
        SampleLog(*given)
    one.close()
    two = SampleLog(*given)
    assert two.done("a")
    assert not two.done("b")
    two.append(row("b"))
    assert two.done("b")
    two.append(row("b", "too late"))
    assert two.done("b")
    assert two.times() == {"a": {"id": "a", "batch": 1, "seconds": {}}}
    two.close()
    with pytest.raises(ConfigError, match=r"method.keep=0.5 \(now 0.25\)"):
        SampleLog(tmp_path, "x", {"method": {"keep": 0.25}})
    text = path.read_text()
    path.write_text(text[: len(text) // 3])
    SampleLog(*given).close()
    path.write_text(text.replace('{"id": "a"', '{"id: "a"'))
    with pytest.raises(ConfigError, match="line 2 of .* is damaged"):
        SampleLog(*given)
    path.write_text('{"some": "json"}\n')
    with pytest.raises(ConfigError, match="line 1 of .* is damaged: id is missing"):
        SampleLog(*given)


def test_log_of_several_processes(tmp_path):
    """Each has its file; all see what is done; the first takes over the others' at the end, also when there are fewer
    processes than before, and a file of another run is refused."""
    identity = {"method": 1}

    def opened(rank=0, world=3, **changes):
        return SampleLog(tmp_path, "a.b", {**identity, **changes}, rank=rank, world=world)

    logs = [opened(rank) for rank in range(3)]
    for rank, one in enumerate(logs):
        one.append(row(f"r{rank}", text=str(rank)), {"batch": rank + 1, "seconds": {}})
    logs[2].append(row("bad", "ValueError: x"))
    for one in logs:
        one.close()
    SampleLog(tmp_path, "a", identity).close()  # a name that another's begins with
    (tmp_path / "samples" / "a.b.rank1.jsonl").open("a").write('{"id": "cut')
    two = opened(rank=1, world=2)
    assert set(two.rows) == {"r0", "r1", "r2", "bad"}
    two.append(row("bad"))
    two.close()
    with pytest.raises(ConfigError, match=r"method=1 \(now 2\)"):
        opened(method=2)
    one = opened(world=1)
    one.gather()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["a.b.jsonl", "a.jsonl"]
    assert sorted(path.name for path in (tmp_path / "times").iterdir()) == ["a.b.jsonl", "a.jsonl"]
    one.close()
    header, rows = read_log(tmp_path / "samples" / "a.b.jsonl")
    assert (header["identity"], set(rows)) == (identity, {"r0", "r1", "r2", "bad"})
    assert not any(row["error"] for row in rows.values())
    again = opened(world=1)
    assert {name: row["batch"] for name, row in again.times().items()} == {"r0": 1, "r1": 2, "r2": 3}
    again.close()


def test_overwrite_of_several_processes(tmp_path):
    """Files of processes that no longer take part go too."""
    for rank in range(3):
        one = SampleLog(tmp_path, "x", {}, rank=rank, world=3)
        one.append(row(str(rank)), {"batch": 1, "seconds": {}})
        one.close()
    for rank in (0, 1):
        one = SampleLog(tmp_path, "x", {"new": 1}, True, rank, 2)
        assert one.rows == {}
        one.close()
    assert len(list(tmp_path.rglob("x*"))) == 4


def test_out_of_memory(tmp_path, monkeypatch):
    """Batches that do not fit are halved until they do, nothing is lost or failed, and the result says so."""
    good, sizes = Loaded.answer, []

    def small(self, inputs, most):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return good(self, inputs, most)

    monkeypatch.setattr(Loaded, "answer", small)
    assert evaluate(settings(tmp_path / "small", strategies=("hiprune",), limit=13, batch_size=10)) == 0
    monkeypatch.undo()
    assert sizes == [10, 5, 2, 2, 2, 2, 2, 2, 1]
    evaluate(settings(tmp_path / "large", strategies=("hiprune",), limit=13, batch_size=10))
    run = "hiprune-keep0.25"
    assert (tmp_path / "small" / "samples" / f"{run}.demo.jsonl").read_text() == (
        tmp_path / "large" / "samples" / f"{run}.demo.jsonl"
    ).read_text()
    notes = json.loads((tmp_path / "small" / "runs" / f"{run}.json").read_text())["notes"]
    assert notes == ["out of memory with 5 samples at a time, went on with 2"]


def test_out_of_memory_alone(tmp_path, monkeypatch):
    """A sample that does not fit alone is an error, not an empty answer."""

    def never(self, inputs, most):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Loaded, "answer", never)
    assert evaluate(settings(tmp_path, strategies=("none",), limit=3)) == 3
    assert [row["error"] for row in log(tmp_path, "none")] == ["OutOfMemoryError: CUDA out of memory"] * 3


def test_interrupt(tmp_path, monkeypatch, capsys):
    """Ctrl-C: one line, exit code 130, and the log keeps what is done."""
    good, seen = Demo.images, []

    def images(self, doc):
        seen.append(doc["id"])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return good(self, doc)

    monkeypatch.setattr(Demo, "images", images)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--model", "demo", "--strategy", "none", "--batch-size", "1", "--output", str(tmp_path)])
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "vtc: interrupted; the same command goes on from here"
    assert [row["id"] for row in log(tmp_path, "none")] == seen[:2]
