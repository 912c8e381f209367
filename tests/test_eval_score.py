"""Scoring saved answers without a model: folders of `vtc eval`, files from anywhere, published figures."""

import json
import shutil

import pytest

from tests.helpers_checkpoints import save_tiny
from tests.helpers_launch import figures, logs
from tests.test_eval import ROOT, settings
from tests.test_golden import roots
from vtc.cli import main
from vtc.eval import models
from vtc.eval.runner import evaluate
from vtc.eval.running.eval_settings import GENERATED, EvalSettings
from vtc.eval.tasks import TASKS

FIXTURES = ROOT / "tests" / "fixtures" / "tasks"
BENCHMARKS = tuple(name for name in TASKS if name not in GENERATED)


def vtc_eval(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `vtc eval ...`."""
    with pytest.raises(SystemExit) as stopped:
        main(["eval", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""
    monkeypatch.setattr(models, "load", lambda *a: pytest.fail("a model was loaded"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All benchmarks' invented rows, answered by a tiny random Qwen2.5-VL with and without a strategy."""
    model = save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")
    output = tmp_path_factory.mktemp("everything")
    places = {"": str(FIXTURES), "textvqa_ocr": str(FIXTURES / "textvqa.jsonl")}
    wanted = EvalSettings(
        output=output, model=str(model), strategies=("none", "uniform"), keeps=("0.5",), tasks=BENCHMARKS,
        dataset_path=places, max_new_tokens=3, batch_size=4,
    )  # fmt: skip
    assert evaluate(wanted) == 0
    return output


def test_every_benchmark_runs(everything):
    """From its rows to a result, with the data's digest, and every row answered from fewer tokens."""
    summary = json.loads((everything / "results.json").read_text())
    assert set(summary["comparison"]) == set(BENCHMARKS)
    for run in summary["runs"]:
        for name, task in run["tasks"].items():
            assert task["n"] > 1, name
            assert task["n_errors"] == 0
            assert (task["dialect"], len(task["data"]["revision"])) == ("llava", 16)
            assert task["figures"][task["primary"]]["value"] is not None
            assert task["tokens"]["kept"] == pytest.approx(1.0 if run["name"] == "none" else 0.5, abs=0.05)
    assert set(summary["average"]["none"]["tasks"]) <= set(BENCHMARKS)


def test_again_from_the_logs(everything, tmp_path, capsys, no_model):
    """The same figures without a model, from a copy that has nothing but logs; the logs stay."""
    shutil.copytree(everything / "samples", tmp_path / "samples")
    code, out, _ = vtc_eval(capsys, "score", tmp_path)
    assert code == 0
    assert "uniform" in out
    assert figures(tmp_path) == figures(everything)
    assert logs(tmp_path) == logs(everything)


def test_a_change_of_scoring_is_seen(everything, tmp_path, capsys, monkeypatch, no_model):
    """Figures come from the texts, not from the scores in the log."""
    shutil.copytree(everything / "samples", tmp_path / "samples")
    monkeypatch.setattr(TASKS["ai2d"], "score", lambda self, reference, text: {"correct": 1.0})
    code, out, _ = vtc_eval(capsys, "score", tmp_path, "--tasks", "ai2d", "--json")
    assert code == 0
    summary = json.loads(out)
    assert list(summary["comparison"]) == ["ai2d"]
    assert [run["tasks"]["ai2d"]["figures"]["accuracy"]["value"] for run in summary["runs"]] == [1.0, 1.0]


def test_another_dialect(everything, capsys, no_model):
    """Scoring of another dialect goes beside the run's own results."""
    before = figures(everything)
    assert vtc_eval(capsys, "score", everything, "--dialect", "lmms", "--tasks", "pope,gqa")[0] == 0
    assert figures(everything) == before
    other = figures(everything / "scored-lmms")
    assert {task for _, task in other} == {"pope", "gqa"}
    assert {task["dialect"] for task in other.values()} == {"lmms"}


def test_published_figures(capsys, no_model):
    """LLaVA-1.5-13B's own answers give its published figures: POPE F1 84.5 / 86.2 / 87.1, ScienceQA-IMG 71.6."""
    folders = [root / "realdata" for root in roots() if (root / "realdata").is_dir()]
    if not folders:
        pytest.skip("no golden folder with realdata is here; VTC_GOLDEN_DIR names one")
    code, out, _ = vtc_eval(capsys, "score", folders[0] / "pope_llava15_13b")
    shown = {line.split()[0]: line.split()[1] for line in out.splitlines() if len(line.split()) == 3}
    assert code == 0
    assert [shown[f"f1/{name}"] for name in ("adversarial", "popular", "random")] == ["84.5", "86.2", "87.1"]
    assert shown["f1"] == "85.9"
    code, out, _ = vtc_eval(capsys, "score", folders[0])
    assert code == 0
    titles = [line.split(",")[0] for line in out.splitlines() if line.startswith("task ")]
    assert titles == ["task pope", "task scienceqa_img"]
    code, out, _ = vtc_eval(capsys, "score", folders[0] / "scienceqa_llava15_13b", "--task", "scienceqa_img", "--json")
    found = json.loads(out)
    assert (code, found["n"], found["primary"]) == (0, 4241, "img")
    assert f"{100 * found['figures']['img']['value']:.1f}" == "71.6"
    assert f"{100 * found['figures']['all']['value']:.1f}" == "74.4"


def test_answers_without_references(tmp_path, capsys, no_model):
    """Right answers come from the data; answers that fit to no sample, or twice, are one line."""
    rows = [json.loads(line) for line in (FIXTURES / "textvqa.jsonl").read_text().splitlines()]
    file = tmp_path / "mine.jsonl"
    given = [{"question_id": row["question_id"], "text": row["answers"][0]} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in given))
    place = ("--tasks", "textvqa", "--dataset-path", FIXTURES / "textvqa.jsonl", "--json")
    code, out, _ = vtc_eval(capsys, "score", file, *place)
    assert code == 0
    assert json.loads(out)["figures"]["accuracy"]["value"] > 0.3
    code, _, err = vtc_eval(capsys, "score", file, "--tasks", "textvqa")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "lacks column 'answers' of task 'textvqa'; possible: --dataset-path" in err
    for extra, expected in (
        ({"question_id": "none such", "text": "x"}, "is of no sample in the data"),
        ({"question_id": rows[0]["question_id"], "text": "x"}, "1 samples occur twice"),
        ({"question_id": rows[0]["question_id"]}, "possible for its text: text, pred"),
    ):
        file.write_text("".join(json.dumps(row) + "\n" for row in [*given, extra]))
        code, _, err = vtc_eval(capsys, "score", file, *place)
        assert (code, len(err.splitlines())) == (2, 1)
        assert expected in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("score", "no/such/folder"), "'no/such/folder' does not exist; possible: a folder of `vtc eval`"),
        (("score", "{}"), "--tasks is missing; possible: --tasks with the one that"),
        (("score", "{}", "--tasks", "pope,gqa"), "--tasks 'pope,gqa' is not one benchmark"),
        (("score", "{}", "--tasks", "pope"), "answer 1 of 'odd.jsonl': ConfigError: the right answer of"),
        (("score", "{}", "--tasks", "gqa"), "answer 1 of 'odd.jsonl': ConfigError: answer=[1]; possible: a text or"),
        (("score", "{}", "--tasks", "pope", "--dataset-path", "gqa=x"), "unknown task in --dataset-path 'gqa'"),
        (("score", "{}", "--tasks", "pope", "--against", "hiprune"), "--against has no effect on files of answers"),
        (("--tasks", "pope", "score", "{}"), "--tasks has no effect before `score`; possible: behind it"),
        (("--against", "hiprune", "--limit", "3"), "--limit has no effect without --model and --strategy"),
        (("--model", "demo", "--strategy", "none", "--dataset-path", "no.jsonl"), "--tasks does not say of what"),
        (("--model", "demo", "--strategy", "none", "--dataset-path", "no.jsonl", "--tasks", "demo"),
         "--dataset-path 'no.jsonl' is not for task 'demo'"),
        (("--model", "demo", "--strategy", "none", "--dataset-path", "pope=x", "--tasks", "gqa"),
         "unknown task in --dataset-path 'pope': possible: gqa"),
        (("--model", "demo", "--strategy", "none", "--dataset-path", "~nobody-here/x", "--tasks", "gqa"),
         "'~nobody-here/x' does not exist"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_is_refused(tmp_path, capsys, no_model, arguments, said):
    """Options without effect, places that are not there, answers of strange types: one line, exit code 2."""
    (tmp_path / "odd.jsonl").write_text('{"id": 1, "question": "q", "answer": [1], "text": "yes"}\n[1]\n')
    code, out, err = vtc_eval(
        capsys, *(str(one).format(tmp_path / "odd.jsonl") for one in arguments),
        *(() if "score" in arguments else ("--output", tmp_path / "o")),
    )  # fmt: skip
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_rows_of_answers_that_are_none(tmp_path, capsys, no_model):
    """A file of answers is read whole or refused, also one that is damaged."""
    for text, said in (
        ("[1]\n", "answer 1 of 'a.jsonl' is a list; possible: an object with columns"),
        ("{\n", "line 1 of 'a.jsonl' is no JSON"),
        ("[" * 100_000, "line 1 of 'a.jsonl' is no JSON"),
        ("9" * 5000, "line 1 of 'a.jsonl' is no JSON"),
        (b"\xff\n", "'a.jsonl' cannot be read"),
    ):
        (tmp_path / "a.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
        code, _, err = vtc_eval(capsys, "score", tmp_path / "a.jsonl", "--tasks", "pope")
        assert (code, len(err.splitlines())) == (2, 1)
        assert said in err
        assert len(err) < 300


def test_a_run_that_was_killed(tmp_path, capsys, no_model):
    """Logs without results are scored as far as they go; a folder without logs is refused."""
    evaluate(settings(tmp_path, strategies=("none", "random"), limit=6))
    shutil.rmtree(tmp_path / "runs")
    log = tmp_path / "samples" / "random-keep0.25.demo.jsonl"
    log.write_text(log.read_text()[:-20])
    code, out, _ = vtc_eval(capsys, "score", tmp_path)
    assert code == 0
    assert json.loads((tmp_path / "runs" / "random-keep0.25.json").read_text())["tasks"]["demo"]["n"] == 5
    (tmp_path / "other" / "samples").mkdir(parents=True)
    code, _, err = vtc_eval(capsys, "score", tmp_path / "other")
    assert (code, "has no sample log to score" in err) == (2, True)


def test_list(capsys):
    """All benchmarks are listed, for people and for programs."""
    code, out, _ = vtc_eval(capsys, "tasks")
    assert code == 0
    assert all(name in out for name in TASKS)
    found = json.loads(vtc_eval(capsys, "tasks", "--json")[1])
    assert [task["name"] for task in found] == list(TASKS)
    assert all(task["source"]["ids"] for task in found if task["name"] not in GENERATED)
