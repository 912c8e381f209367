"""Evaluation: the grid through the bundled model, logs that survive a kill, figures that say what was measured."""

import json
from pathlib import Path

import pytest
from PIL import Image

import vtc
import vtc.demo
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.eval import models
from vtc.eval.results.counts import dropped_nothing
from vtc.eval.runner import evaluate
from vtc.eval.running.eval_settings import EvalSettings, settings_from
from vtc.eval.running.plan import plan
from vtc.eval.tasks.demo import Demo

ROOT = Path(vtc.__file__).resolve().parent.parent
LIMIT = 9
RUNS = ("none", "random-keep0.5", "random-keep20", "hiprune-keep0.5", "hiprune-keep20", "downsample-keep0.5",
        "downsample-keep20")  # fmt: skip


def settings(output: Path, **changes) -> EvalSettings:
    """A small grid on the demo model."""
    values = dict(output=output, strategies=("none", "hiprune"), keeps=("0.25",), limit=LIMIT, batch_size=4)
    return EvalSettings(**{**values, **changes})


def log(output: Path, run: str) -> list[dict]:
    """The rows of a sample log, without its header."""
    lines = (output / "samples" / f"{run}.demo.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def times(output: Path, run: str) -> dict[str, dict]:
    """Seconds per part and sample of a run."""
    lines = (output / "times" / f"{run}.demo.jsonl").read_text().splitlines()
    return {row["id"]: row["seconds"] for row in map(json.loads, lines)}


def answers(output: Path, run: str) -> dict[str, str]:
    """The answers of a run by sample."""
    return {row["id"]: row["text"] for row in log(output, run)}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A finished evaluation's folder."""
    output = tmp_path_factory.mktemp("grid")
    strategies = ("none", "random", "hiprune", "downsample")
    assert evaluate(settings(output, strategies=strategies, keeps=("0.5", "20"))) == 0
    return output


def test_files(grid):
    """One log and one result per run, `none` once, a summary, and a picture that opens."""
    assert sorted(p.name for p in (grid / "samples").iterdir()) == sorted(f"{run}.demo.jsonl" for run in RUNS)
    assert sorted(p.name for p in (grid / "runs").iterdir()) == sorted(f"{run}.json" for run in RUNS)
    with Image.open(grid / "accuracy_vs_tokens.png") as picture:
        picture.verify()
    with Image.open(grid / "accuracy_vs_tokens.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(2**20)) > 20


def test_rows(grid):
    """Each sample has one row with everything; counts are those of the budget."""
    for run in RUNS:
        rows = log(grid, run)
        assert [row["id"] for row in rows] == [f"test-{i:05d}" for i in range(LIMIT)]
        after = {"random-keep0.5": 98, "hiprune-keep0.5": 98, "random-keep20": 20, "hiprune-keep20": 20}.get(run, 196)
        seconds = times(grid, run)
        for row in rows:
            assert {"group", "category", "prompt", "reference", "text", "score", "tokens_out", "text_in"} <= set(row)
            assert row["error"] is None
            assert (row["visual_before"], row["visual_after"]) == (196, after)
            assert 0 < row["tokens_out"] <= Demo.max_new_tokens
            assert row["score"]["correct"] == float(row["text"] == row["reference"])
            spent = seconds[row["id"]]
            parts = [spent[part] for part in ("vision", "selection", "prefill", "decode")]
            assert all(part >= 0 for part in parts)
            assert sum(parts) <= spent["total"] * 1.001
            assert (parts[1] > 0) == (after < 196)


def test_results(grid):
    """The result names versions, model, resolved strategy and seeds, and its figures follow from the log."""
    for run in RUNS:
        result = json.loads((grid / "runs" / f"{run}.json").read_text())
        assert {"schema", "created", "versions", "git", "model", "method", "seeds", "generation"} <= set(result)
        assert {"vtc", "python", "torch", "transformers"} <= set(result["versions"])
        assert {"id", "dtype", "attention", "device", "digest"} <= set(result["model"])
        task, rows = result["tasks"]["demo"], log(grid, run)
        assert (task["n"], task["n_errors"], task["split"]) == (LIMIT, 0, "test")
        right = sum(row["score"]["correct"] for row in rows)
        assert task["figures"]["accuracy"]["value"] == pytest.approx(right / LIMIT)
        assert sum(category["n"] for category in task["categories"].values()) == LIMIT
        assert task["dialect"] == "llava"
        assert task["data"] == {"id": "generated", "split": "test"}
        assert {"visual_before", "visual_after", "text_in", "out"} <= set(task["tokens"])
        assert set(task["seconds"]) == {"vision", "selection", "prefill", "decode", "total"}
        assert all(set(spread) == {"median", "mean"} for spread in task["seconds"].values())
    result = json.loads((grid / "runs" / "hiprune-keep0.5.json").read_text())
    expected = vtc.load_strategy("hiprune", "llava", keep=0.5).dump()
    assert result["method"]["resolved"] == {k: v for k, v in expected.items() if k != "description"}
    assert 0.4 < result["tasks"]["demo"]["prefill_flops"]["ratio"] < 0.5


def test_summary(grid):
    """All runs, in the order asked for, each compared with `none` on the same samples."""
    summary = json.loads((grid / "results.json").read_text())
    assert [run["name"] for run in summary["runs"]] == summary["present"] == list(RUNS)
    compared = summary["comparison"]["demo"]
    assert list(compared) == list(RUNS)
    assert (compared["none"]["difference"]["value"], compared["none"]["difference"]["n"]) == (0.0, LIMIT)
    assert compared["none"]["loyalty"] == compared["none"]["relative"] == 1.0


def test_downsample_says_what_it_did(grid):
    """On a fixed grid the number of tokens stays, and the result says so."""
    result = json.loads((grid / "runs" / "downsample-keep0.5.json").read_text())
    assert result["method"]["downsample"]["mode"] == "blur"
    assert result["tasks"]["demo"]["tokens"]["kept"] == 1.0


def test_none_is_the_plain_model(grid):
    """The logged answers are those of stock generate(), one prompt at a time."""
    model, processor = vtc.demo.load()
    for doc in Demo().open("test", 5):
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": doc["question"]}]}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = processor(images=doc["image"], text=text, return_tensors="pt")
        new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(new, skip_special_tokens=True).strip() == answers(grid, "none")[doc["id"]]


def test_batches_change_nothing(grid, tmp_path):
    """One by one, the answers are the same."""
    evaluate(settings(tmp_path, strategies=("none", "hiprune"), keeps=("20",), batch_size=1))
    for run in ("none", "hiprune-keep20"):
        assert answers(tmp_path, run) == answers(grid, run)


def test_second_time_nothing_runs(grid, capsys, monkeypatch):
    """A finished grid is read from its logs; a larger limit continues it."""
    monkeypatch.setattr(models.Loaded, "answer", lambda *a: pytest.fail("generated again"))
    before = {run: log(grid, run) for run in RUNS}
    assert evaluate(settings(grid, keeps=("0.5", "20"))) == 0
    assert {run: log(grid, run) for run in RUNS} == before
    out, err = capsys.readouterr()
    assert err.count("complete in the log") == 3
    assert "196 -> 98" in out
    assert str(grid) in out


def test_other_run_is_refused(grid):
    """Another key in the same file: one line that says what differs; the log stays."""
    before = log(grid, "hiprune-keep0.5")
    with pytest.raises(ConfigError, match=r"alpha.*another --output, --overwrite") as caught:
        evaluate(settings(grid, strategies=("hiprune",), keeps=("0.5",), overrides={"alpha": 0.5}))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"generation.batch_size=4 \(now 2\)"):
        evaluate(settings(grid, strategies=("none",), batch_size=2))
    assert log(grid, "hiprune-keep0.5") == before


def test_keep_everything(tmp_path):
    """keep=1.0 is the unpatched model, and is reported as that."""
    assert evaluate(settings(tmp_path, keeps=("1.0",), limit=2)) == 0
    assert answers(tmp_path, "hiprune-keep1.0") == answers(tmp_path, "none")
    assert log(tmp_path, "hiprune-keep1.0")[0]["visual_after"] == 196


def test_model_is_left_alone():
    """After a run the model has no hook more than before."""
    from vtc.eval.running.answers import Answerer

    loaded = models.load("demo", {}, "cpu")
    docs = Demo().open("test", 1)
    # transformers itself puts hooks on the tower at the first call.
    loaded.answer(loaded.encode([docs[0]["question"]], [[docs[0]["image"]]]), 1)
    modules = [(m, dict(vars(m))) for m in loaded.model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m, _ in modules]
    run = plan(settings(Path("unused"), strategies=("hiprune",)), "llava")[0]
    with Answerer(loaded, run, Demo(), 4) as answer:
        answer(docs)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m, _ in modules] == hooks
    assert [dict(vars(m)).keys() for m, _ in modules] == [before.keys() for _, before in modules]


def test_unsupported_family(tmp_path, monkeypatch):
    """A model that vtc cannot patch is evaluated as it is, without the split of time; a strategy on it is refused."""

    def refuse(model):
        raise UnsupportedError("unknown family 'x'")

    monkeypatch.setattr(models, "find_family", refuse)
    assert evaluate(settings(tmp_path, strategies=("none",), limit=2)) == 0
    seconds = times(tmp_path, "none")["test-00000"]
    assert seconds["total"] > 0
    assert seconds["prefill"] is None
    with pytest.raises(UnsupportedError, match="unknown family 'x'"):
        evaluate(settings(tmp_path, strategies=("hiprune",), limit=2))


def test_a_run_that_drops_nothing_stops(tmp_path, monkeypatch):
    """If the model made all tokens although the budget is below 1, no figure comes out."""
    monkeypatch.setattr("vtc.eval.running.answers.Answerer._report", lambda self: None)
    with pytest.raises(vtc.PatchError, match="kept all 196 visual tokens where the budget asks for 49"):
        evaluate(settings(tmp_path, strategies=("hiprune",), limit=2))


@pytest.mark.parametrize(
    "keep, images, before, average, nothing",
    [
        (0.25, 1, 196, 196.0, True), (64, 1, 196, 196.0, True), (None, 1, 196, 196.0, True),
        (0.25, 1, 196, 49.0, False), (64, 4, 196, 196.0, False), (0.25, 2, 2, 2.0, False),
        (0.9, 1, 5, 5.0, False), (64, 1, 64, 64.0, False),
    ],
)  # fmt: skip
def test_dropped_nothing(keep, images, before, average, nothing):
    """All tokens stayed where even a budget rounded up for each image is below them."""
    assert dropped_nothing(keep, images, before, average) == nothing


def test_local_directory_and_model_args(tmp_path):
    """A folder of save_pretrained with arguments for from_pretrained; wrong ones are one line."""
    from vtc.demo import MODEL_DIR

    changes = dict(model=str(MODEL_DIR), strategies=("hiprune",), limit=2)
    assert (
        evaluate(settings(tmp_path, **changes, model_args={"dtype": "bfloat16", "attn_implementation": "eager"})) == 0
    )
    model = json.loads((tmp_path / "runs" / "hiprune-keep0.25.json").read_text())["model"]
    assert (model["dtype"], model["attention"], model["id"]) == ("bfloat16", "eager", MODEL_DIR.name)
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        evaluate(settings(tmp_path, **changes, model_args={"attn_implementation": "abacus"}))
    assert "\n" not in str(caught.value)


def test_plan(tmp_path):
    """The order, the names, own budgets, seeds, and files as strategies."""
    file = tmp_path / "mine.yaml"
    file.write_text("keep: 0.3\nstages: [{method: random}]\n")
    runs = plan(settings(tmp_path, strategies=(str(file), "none", "downsample"), keeps=(None,), seed=5))
    assert [run.name for run in runs] == ["mine-keep0.3", "none", "downsample-keep0.25"]
    assert runs[0].record()["resolved"]["stages"][0]["seed"] == 5
    runs = plan(settings(tmp_path, strategies=("random",), overrides={"seed": 7}))
    assert runs[0].record()["resolved"]["stages"][0]["seed"] == 7
    runs = plan(settings(tmp_path, strategies=("apet",), keeps=(None,), seed=5, overrides={"apet.seed": 7}))
    assert [stage["seed"] for stage in runs[0].record()["resolved"]["stages"]] == [5, 7]


def test_suite(tmp_path):
    """A suite gives options, the command line overrides them, an unknown option is refused."""
    file = tmp_path / "mine.yaml"
    file.write_text("model: demo\nstrategy: [none, pool]\nkeep: [0.5, 16]\nmodel_args: {dtype: float32}\nlimit: 3\n")
    options = dict.fromkeys(["model", "strategy", "keep", "limit", "set", "model_args", "tasks", "batch_size"])
    found = settings_from(str(file), {**options, "output": tmp_path, "limit": "7"})
    assert (found.strategies, found.keeps, found.limit) == (("none", "pool"), ("0.5", "16"), 7)
    assert found.model_args == {"dtype": "float32"}
    file.write_text("modle: demo\n")
    with pytest.raises(ConfigError, match="did you mean 'model'"):
        settings_from(str(file), {**options, "output": tmp_path})
