"""Runs held against paper cards: which run is which row, differences, marks, what is printed and written."""

import io
import json

import pytest

import vtc
from vtc.cli import main
from vtc.core.errors import ConfigError
from vtc.eval.papers import against, commands, load_card, show
from vtc.eval.papers.matching import SIZES, is_row
from vtc.eval.tasks import TASKS
from vtc.io.terminal import Terminal

CARDS = {name: load_card(name) for name in ("hiprune", "transprune", "vtc_cls", "cdpruner")}


def test_sizes_name_tasks():
    """The table of full sizes has no task that does not exist."""
    assert set(SIZES) <= set(TASKS.names())


def run(name: str, strategy: str, keep, tasks: dict, family: str = "llava", ident: str = "llava-1.5-7b-hf", **settings):
    """A run as results.json has it. tasks: name to (figures, n, more)."""
    resolved = None
    if strategy != "none":
        asked = settings or {"keep": keep}
        dump = vtc.load_strategy(strategy, family, **asked).dump()
        resolved = json.loads(json.dumps({k: v for k, v in dump.items() if k != "description"}))
    results = {}
    for task, (figures, n, more) in tasks.items():
        known = {f: {"value": v, "stderr": e, "ci95": None} for f, (v, e) in figures.items()}
        results[task] = {
            "name": task, "version": 1, "dialect": "lmms", "split": TASKS[task].splits[0], "n": n, "n_errors": 0,
            "primary": TASKS[task].primary, "scale": TASKS[task].scale, "figures": known,
            "tokens": {"visual_before": 576.0}, **more,
        }  # fmt: skip
    kind = "none" if strategy == "none" else "vtc"
    method = {"name": strategy, "kind": kind, "keep": keep, "budget": None, "resolved": resolved}
    return {"name": name, "model": {"id": ident, "type": family, "family": family}, "method": method, "tasks": results}


def summary() -> dict:
    """The full model and hiprune at 192 tokens, on four tasks."""
    mme = ({"perception": (1500.0, 12.0), "total": (1850.0, 20.0)}, 2374, {})
    full = {"gqa": ({"accuracy": (0.62, 0.004)}, 12578, {}), "mme": mme}
    small = {
        "gqa": ({"accuracy": (0.6, 0.004)}, 12578, {}),
        "mme": ({"perception": (1450.0, 12.0), "total": (1826.0, 20.0)}, 2374, {}),
        "pope": ({"f1": (0.85, None)}, 200, {"n_errors": 3}),
        "vqav2": ({"accuracy": (0.75, 0.001)}, 214354, {}),
    }
    runs = [run("none", "none", None, full), run("hiprune-keep192", "hiprune", 192, small)]
    comparison = {"gqa": {"hiprune-keep192": {"relative": 0.6 / 0.62}}}
    return {"runs": runs, "present": [r["name"] for r in runs], "comparison": comparison}


def scores(found: dict, label: str, model: int = 0) -> dict:
    """The compared scores of a row by task."""
    return {s["task"]: s for row in found["models"][model]["rows"] if row["label"] == label for s in row["scores"]}


def test_differences_by_hand():
    """Measured minus published in the paper's scale; marked beyond two standard errors; % of full from both."""
    found = against(CARDS["hiprune"], summary())
    mine = scores(found, "HiPrune")
    assert (mine["gqa"]["published"], mine["gqa"]["measured"], mine["gqa"]["stderr"]) == (59.2, 60.0, 0.4)
    assert mine["gqa"]["difference"] == pytest.approx(0.8)
    assert not mine["gqa"]["beyond"]  # exactly two standard errors
    assert mine["gqa"]["published_of_full"] == pytest.approx(59.2 / 61.9)
    assert mine["gqa"]["measured_of_full"] == pytest.approx(0.6 / 0.62)
    assert (mine["mme"]["figure"], mine["mme"]["difference"]) == ("total", 12.0)
    assert mine["mme"]["measured_of_full"] == pytest.approx(1826 / 1850)  # from the run, of the same figure
    assert mine["pope"]["measured"] == pytest.approx(85.0)
    assert mine["pope"]["stderr"] is None
    assert not mine["pope"]["beyond"]
    assert mine["vqav2"]["beyond"]
    row = next(row for row in found["models"][0]["rows"] if row["label"] == "HiPrune")
    assert row["mean_measured_of_full"] == pytest.approx((0.6 / 0.62 + 1826 / 1850) / 2)
    assert row["mean_published_of_full"] == pytest.approx((59.2 / 61.9 + 1814 / 1862) / 2)


def test_what_makes_a_figure_another_one_is_marked():
    """Dialect, split, samples left out and failed, settings that are not the strategy's own."""
    given = summary()
    given["runs"][1]["method"]["resolved"]["stages"][0]["alpha"] = 0.5
    mine = scores(against(CARDS["hiprune"], given), "HiPrune")
    assert mine["gqa"]["remarks"] == ["alpha=0.5"]
    assert mine["pope"]["remarks"] == ["first 203 only", "3 failed", "alpha=0.5"]
    assert mine["vqav2"]["remarks"] == [
        "other dialect: lmms", f"split {TASKS['vqav2'].splits[0]}, published test-dev", "alpha=0.5",
    ]  # fmt: skip


def test_published_figures_without_a_run_are_counted():
    """Those of vtc's strategies, and apart from them those of methods that it has not got."""
    model = against(CARDS["hiprune"], summary())["models"][0]
    rows = CARDS["hiprune"].models[0].rows
    ours = sum(s is not None for row in rows if row.strategy for s in row.scores.values())
    others = sum(s is not None for row in rows if not row.strategy for s in row.scores.values())
    assert model["published_without_run"] == ours - 2 - 4
    assert model["published_without_method"] == others
    assert [row["label"] for row in model["rows"]] == ["Vanilla, 576 tokens", "HiPrune"]


@pytest.mark.parametrize(
    ("asked", "same"), [(192, True), (191, False), (0.3333, True), (0.334, True), (0.34, False), (0.25, False)]
)
def test_a_fraction_is_a_count_if_it_rounds_to_it(asked, same):
    """0.3333 and 0.334 of 576 tokens are 192; 0.34 is 196."""
    model = CARDS["hiprune"].models[0]
    row = next(row for row in model.rows if row.strategy == "hiprune" and row.keep == 192)
    assert is_row(model, row, run("r", "hiprune", asked, {})) == same


def test_settings_in_place_of_a_budget():
    """The published schedule, a knob, and a composition are found by what they resolve to."""
    model = CARDS["transprune"].models[0]
    published, knob = (row for row in model.rows if row.strategy == "fastv")
    assert is_row(model, published, run("fastv-published", "fastv", None, {}, R=0.5))
    assert is_row(model, knob, run("fastv-own", "fastv", None, {}, R=0.75))
    assert not is_row(model, published, run("fastv-own", "fastv", None, {}, R=0.75))
    assert not is_row(model, published, run("fastv-keep0.5", "fastv", 0.5, {}))
    both = CARDS["transprune"].models[1]
    name, settings = "visionzip+transprune", {"visionzip.keep": 288, "schedule": "combined"}
    found = [row.label for row in both.rows if is_row(both, row, run("x", name, None, {}, **settings))]
    assert found == ["VisionZip 288 + TransPrune 36"]


def test_fastv_is_asked_for_its_mean_over_layers():
    """192 tokens after layer 2 of 32 are 216 on average."""
    model = CARDS["hiprune"].models[0]
    row = next(row for row in model.rows if row.strategy == "fastv" and row.keep == 192)
    assert row.asked == (2 * 576 + 30 * 192) / 32
    assert is_row(model, row, run("f", "fastv", 216, {}))
    assert not is_row(model, row, run("f", "fastv", 192, {}))


def test_checkpoints():
    """The id's end, or a folder named after it; else the first model of the family, and that is said."""
    given = summary()
    for ident, same, checkpoint in [
        ("llava-hf/llava-1.5-7b-hf", True, "llava-hf/llava-1.5-7b-hf"),
        ("copy-of-LLaVA-1.5-13b-hf", True, "llava-hf/llava-1.5-13b-hf"),
        ("llava-v1.5-7b", True, "llava-hf/llava-1.5-7b-hf"),
        ("my-llava", False, "llava-hf/llava-1.5-7b-hf"),
    ]:
        for each in given["runs"]:
            each["model"] = {"id": ident, "type": "llava", "family": "llava"}
        models = against(CARDS["hiprune"], given)["models"]
        assert [(m["checkpoint"], m["same_checkpoint"]) for m in models] == [(checkpoint, same)]


def printed(card, given, output=None) -> str:
    """What `against` prints, on one wide line per line."""
    stream = io.StringIO()
    against(card, given, Terminal(file=stream, width=200), output)
    return stream.getvalue()


def test_tables_and_file(tmp_path):
    """The table has differences, marks and remarks; the lines beneath what the card says; the file is the result."""
    text = printed(CARDS["hiprune"], summary(), tmp_path)
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert "+0.8 " in text
    assert "other dialect: lmms" in lines["vqav2"]
    assert "-1.7*" in lines["vqav2"]
    assert "first 203 only" in lines["pope"]
    assert "-0.1" not in lines["gqa"]
    assert "CHECKPOINT" not in text
    assert f"measured so far  {CARDS['hiprune'].measured}" in text
    assert all(reason in text for reason in CARDS["hiprune"].differs)
    assert list(tmp_path.iterdir()) == [tmp_path / "against_hiprune.json"]
    found = json.loads((tmp_path / "against_hiprune.json").read_text(encoding="utf-8"))
    assert found == against(CARDS["hiprune"], summary())
    assert found["schema"] == "vtc.eval.against/1"


def test_another_checkpoint_is_said_loudly():
    given = summary()
    for each in given["runs"]:
        each["model"] = {"id": "demo", "type": "llava", "family": "llava"}
    text = printed(CARDS["hiprune"], given)
    assert "THE CHECKPOINT DIFFERS: measured demo, published llava-hf/llava-1.5-7b-hf" in text


def test_nothing_to_compare_prints_commands():
    """Runs of another family, or of none of the card's tasks, get the command lines."""
    given = {"runs": [run("none", "none", None, {}, "qwen2_vl", "other")], "present": ["none"], "comparison": {}}
    text = printed(CARDS["vtc_cls"], given)
    assert "  " + commands(CARDS["vtc_cls"])[0] in text
    text = printed(CARDS["hiprune"], {"runs": [run("none", "none", None, {})], "comparison": {}})
    assert "no run here" in text
    assert "  " + commands(CARDS["hiprune"])[0] in text
    assert "Qwen/" not in text  # only those of the model at hand
    alone = printed(CARDS["cdpruner"], given)
    assert "averages alone" in alone
    assert "  94.3  CDPruner, 32 tokens, on llava-hf/llava-1.5-7b-hf: mean over the paper's benchmarks" in alone
    assert "Vanilla" not in alone


def test_show(tmp_path, capsys):
    """Without results command lines, with a folder what is in it; a folder without results is refused."""
    console = Terminal(file=io.StringIO(), width=400)
    show(["hiprune"], None, console)
    assert "vtc eval --model llava-hf/llava-1.5-7b-hf" in console.file.getvalue()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="results.json' does not exist"):
        show(["hiprune"], tmp_path, console)
    empty = {"schema": "vtc.eval.results/3", "runs": [], "present": [], "comparison": {}}
    (tmp_path / "results.json").write_text(json.dumps(empty))
    show(["hiprune"], tmp_path, console)
    assert (tmp_path / "against_hiprune.json").is_file()
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--against", "hiprune"])
    assert stopped.value.code in (0, None)
    assert "vtc eval --model" in capsys.readouterr().out
