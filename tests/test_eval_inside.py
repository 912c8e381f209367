"""Evaluation of stages inside the language model and of compositions: what counts is the average decoder layer."""

import io
import itertools
import json

import pytest

import vtc
import vtc.demo
from tests.test_eval import answers, log, settings, times
from vtc.core.errors import ConfigError
from vtc.eval import models
from vtc.eval.runner import evaluate
from vtc.eval.running.answers import Answerer
from vtc.eval.running.plan import plan
from vtc.eval.showing.console import _selection
from vtc.eval.tasks.demo import Demo
from vtc.io.terminal import Terminal

LIMIT, TOKENS = 9, 196
# Decoder layers 0 to 7 of the bundled model; published schedules, roundings as published.
SEEN = {
    "transprune-published": [196, 196, 122, 24, 24, 24, 24, 24],
    "hiprune+fastv-published": [49, 24, 24, 24, 24, 24, 24, 24],
    "hiprune-keep0.25": [49] * 8,
}
RUNS = ("none", *SEEN)


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """A finished evaluation's folder, and what was printed."""
    output = tmp_path_factory.mktemp("inside")
    printed = io.StringIO()
    strategies = ("none", "transprune", "hiprune+fastv", "hiprune")
    assert evaluate(settings(output, strategies=strategies, keeps=(None,)), Terminal(file=printed)) == 0
    return output, printed.getvalue()


def test_files(inside):
    """Names of strategies without a keep say so, and are those of files."""
    output, _ = inside
    assert sorted(p.name for p in (output / "samples").iterdir()) == sorted(f"{run}.demo.jsonl" for run in RUNS)
    assert sorted(p.name for p in (output / "runs").iterdir()) == sorted(f"{run}.json" for run in RUNS)


@pytest.mark.parametrize("run", SEEN)
def test_rows(inside, run):
    """Average and last layer of each row, and FLOPs layer by layer."""
    seen, shape = SEEN[run], models.load("demo", {}, "cpu").family.language_shape()
    for row in log(inside[0], run):
        counts = [row[name] for name in ("visual_before", "visual_after", "visual_average")]
        assert counts == [TOKENS, seen[-1], sum(seen) / 8]
        assert (row["images"], row["error"]) == (1, None)
        lengths = [row["text_in"] + n for n in seen]
        looks = [before for before, after in itertools.pairwise(lengths) if after < before and "transprune" in run]
        least, most = (sum(shape.ahead_flops(n, asked) for n in looks) for asked in (bool(looks), row["text_in"]))
        whole, after = row["prefill_flops"]
        assert whole == shape.prefill_flops([row["text_in"] + TOKENS] * 8)
        assert least <= after - shape.prefill_flops(lengths) <= most
        assert 0 < row["paper_flops"][1] < row["paper_flops"][0]
        spent = times(inside[0], run)[row["id"]]
        parts = [spent[part] for part in ("vision", "selection", "prefill", "decode")]
        assert all(part > 0 for part in parts)
        assert sum(parts) <= spent["total"] * 1.001


@pytest.mark.parametrize("run", RUNS)
def test_results(inside, run):
    """Kept is the share of the average layer; the budget is readable; every stage is in the record."""
    result = json.loads((inside[0] / "runs" / f"{run}.json").read_text())
    task, seen = result["tasks"]["demo"], SEEN.get(run, [TOKENS] * 8)
    assert task["tokens"]["kept"] == pytest.approx(sum(seen) / 8 / TOKENS)
    assert task["tokens"]["visual_after"] == seen[-1]
    assert result["method"]["budget"] == (run.partition("-")[2].removeprefix("keep") or None)
    if run == "none":
        assert task["paper_flops"]["ratio"] is None
        return
    resolved = vtc.load_strategy(result["method"]["name"], "llava").dump()
    assert result["method"]["resolved"] == {k: v for k, v in resolved.items() if k != "description"}
    assert 0 < task["paper_flops"]["ratio"] < task["tokens"]["kept"] < task["prefill_flops"]["ratio"] + 0.05


def test_table(inside):
    """Budget, average tokens and their share are printed."""
    lines = {line.split()[0]: line.split() for line in inside[1].splitlines() if line.strip()}
    assert lines["transprune"][1:6] == ["published", "196", "->", "79.2", "40.4"]
    assert lines["hiprune"][1:6] == ["0.25", "196", "->", "49", "25.0"]


def test_as_stock_generate(inside):
    """The logged answers are those of a patched model, one prompt at a time."""
    model, processor = vtc.demo.load()
    with vtc.patched(model, "hiprune+fastv"):
        for doc in Demo().open("test", 5):
            turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": doc["question"]}]}]
            text = processor.apply_chat_template(turn, add_generation_prompt=True)
            inputs = processor(images=doc["image"], text=text, return_tensors="pt")
            new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            found = processor.decode(new, skip_special_tokens=True).strip()
            assert found == answers(inside[0], "hiprune+fastv-published")[doc["id"]]


def test_resume_knows_the_whole_strategy(inside):
    """A finished run is not repeated; a knob of the second stage makes it another run."""
    before, file = log(inside[0], "transprune-published"), inside[0] / "runs" / "transprune-published.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "git": "as it was"}))
    assert evaluate(settings(inside[0], strategies=("transprune",), keeps=(None,))) == 0
    assert log(inside[0], "transprune-published") == before
    assert json.loads(file.read_text())["git"] == "as it was", "nothing was answered, so nothing is newer"
    output = inside[0].parent / "other"
    fixed = dict(strategies=("hiprune+fastv",), keeps=("0.2",), limit=1)
    assert evaluate(settings(output, **fixed)) == 0
    with pytest.raises(ConfigError, match=r"method.resolved.stages=.*another --output, --overwrite"):
        evaluate(settings(output, **fixed, overrides={"K": 2}))


@pytest.mark.parametrize(
    "strategies, keeps, expected",
    [
        (("transprune", "fastv"), ("0.5", "0.2"), "transprune-keep0.2: keep=0.2 .* out of reach for transprune"),
        (("none", "fastv"), ("20",), "fastv-keep20: keep=20 .* out of reach for fastv"),
    ],
)
def test_out_of_reach(tmp_path, monkeypatch, strategies, keeps, expected):
    """One line that names the run, before any sample and any log."""
    monkeypatch.setattr(models.Loaded, "answer", lambda *a: pytest.fail("a sample was evaluated"))
    with pytest.raises(ConfigError, match=expected) as caught:
        evaluate(settings(tmp_path, strategies=strategies, keeps=keeps))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.json*"))


def test_reach(tmp_path):
    """The means asked for are met: fractions, counts, alone and composed."""
    strategies, keeps = ("transprune", "fastv"), ("0.5", "80")
    assert evaluate(settings(tmp_path, strategies=strategies, keeps=keeps, limit=2)) == 0
    assert evaluate(settings(tmp_path, strategies=("hiprune+transprune",), keeps=("0.2", "60"), limit=2)) == 0
    means = {"keep0.5": 98, "keep80": 80, "keep0.2": 39.2, "keep60": 60}
    logs = [path.name.removesuffix(".demo.jsonl") for path in (tmp_path / "samples").iterdir()]
    assert len(logs) == 6
    for run in logs:
        mean = means[run.partition("-")[2]]
        assert all(abs(row["visual_average"] - mean) <= 1.5 for row in log(tmp_path, run)), run


def test_names(tmp_path):
    """Names are safe for files whatever the strategy is called, and "published" is said of what is."""
    odd = tmp_path / "a b,ü:*?.yaml"
    odd.write_text("stages: [{method: fastv}]\n")
    long = tmp_path / f"{'x' * 240}.yaml"
    long.write_text("stages: [{method: fastv}]\n")
    given = (str(odd), f"hiprune+{long}", "hiprune+fastv", "transprune")
    names = [run.name for run in plan(settings(tmp_path, strategies=given, keeps=(None,)))]
    assert names == ["a_b_____-own", f"hiprune+{'x' * 108}-own", "hiprune+fastv-published", "transprune-published"]
    runs = plan(settings(tmp_path, strategies=("fastv",), keeps=(None,), overrides={"K": 3}))
    assert [(run.name, run.budget, run.keep) for run in runs] == [("fastv-own", "own", None)]
    runs = plan(settings(tmp_path, strategies=("hiprune+fastv", "none"), keeps=("0.2", "64")))
    assert [run.name for run in runs] == ["hiprune+fastv-keep0.2", "hiprune+fastv-keep64", "none"]
    assert [run.budget for run in runs] == ["0.2", "64", None]


def test_prompts_without_images(monkeypatch):
    """They are answered as they are, in a batch with others and alone, and are not mistaken for runs without drops."""
    loaded, docs = models.load("demo", {}, "cpu"), list(Demo().open("test", 3))
    images = Demo.images
    monkeypatch.setattr(Demo, "images", lambda self, doc: [] if doc["id"] == docs[1]["id"] else images(self, doc))
    run = plan(settings(None, strategies=("transprune",), keeps=(None,)), "llava")[0]
    with Answerer(loaded, run, Demo(), 4) as answer:
        mixed, alone = ([row for row, _ in answer(some)] for some in (docs, docs[1:2]))
    assert [row["error"] for row in (*mixed, *alone)] == [None] * 4
    assert [row["visual_average"] for row in (*mixed, *alone)] == [79.25, 0, 79.25, 0]
    assert mixed[1]["text"] == alone[0]["text"]
    assert mixed[1]["prefill_flops"] == alone[0]["prefill_flops"]
    assert mixed[1]["prefill_flops"][0] == mixed[1]["prefill_flops"][1]


@pytest.mark.parametrize("keep, asked", [(None, "fewer"), ("0.5", "98"), ("100", "100")])
def test_a_run_that_drops_nothing_stops(tmp_path, monkeypatch, keep, asked):
    """Also with a schedule for a budget."""
    monkeypatch.setattr("vtc.eval.running.answers.Answerer._report", lambda self: None)
    with pytest.raises(vtc.PatchError, match=f"kept all 196 visual tokens where the budget asks for {asked}"):
        evaluate(settings(tmp_path, strategies=("transprune",), keeps=(keep,), limit=2))


def test_old_results_are_left_out(tmp_path):
    """Results of another schema in the folder do not spoil the summary; a log of one is refused."""
    evaluate(settings(tmp_path, strategies=("none",), limit=1))
    old = json.loads((tmp_path / "runs" / "none.json").read_text())
    (tmp_path / "runs" / "old.json").write_text(json.dumps({**old, "schema": "vtc.eval.run/1", "name": "old"}))
    (tmp_path / "runs" / "broken.json").write_text('{"name": "bro')
    evaluate(settings(tmp_path, strategies=("none",), limit=1))
    assert [run["name"] for run in json.loads((tmp_path / "results.json").read_text())["runs"]] == ["none"]
    path = tmp_path / "samples" / "none.demo.jsonl"
    path.write_text(path.read_text().replace("vtc.eval.samples/3", "vtc.eval.samples/2"))
    with pytest.raises(ConfigError, match="is no sample log"):
        evaluate(settings(tmp_path, strategies=("none",), limit=1))


def test_selection_is_a_share_of_the_unpruned_prefill():
    """Of its own where `none` is not in the table; no figure where nothing was measured."""

    def run(name, prefill, selection):
        spreads = {"prefill": {"median": prefill}, "selection": {"median": selection}}
        return {"name": name, "tasks": {"demo": {"seconds": spreads}}}

    none, fast, unknown = run("none", 0.2, 0.0), run("fastv", 0.1, 0.01), run("x", None, None)
    assert _selection(fast, [none, fast], "demo") == "5.0"
    assert _selection(fast, [fast], "demo") == "10.0"
    assert _selection(none, [none, fast], "demo") == "0.0"
    assert _selection(unknown, [unknown], "demo") == "-"
