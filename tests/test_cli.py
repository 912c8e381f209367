"""The command line: what it prints, and that wrong input gets one line and exit code 2."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import vtc
from vtc.cli import main

ROOT = Path(vtc.__file__).resolve().parent.parent


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `vtc ARGUMENTS`."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_list(capsys):
    """Every strategy with its default budget, and every family, in both forms."""
    code, out, _ = run(capsys, "list")
    assert code == 0
    data = json.loads(run(capsys, "list", "--json")[1])
    assert [s["name"] for s in data["strategies"]] == vtc.strategies()
    assert data["families"] == vtc.families(), "a family file must be named after its family"
    for entry in data["strategies"]:
        line = next(line for line in out.splitlines() if line.startswith(entry["name"] + " "))
        assert entry["budget"] in line
        config = vtc.load_strategy(entry["name"])
        assert config.description == entry["description"] != ""
        assert entry["budget"] == ("schedule" if config.keep is None else f"keep={config.keep}")


def test_list_is_light():
    """`vtc list` loads neither torch nor transformers."""
    code = """
import sys, vtc.cli
try:
    vtc.cli.main(["list"])
except SystemExit as stopped:
    assert stopped.code == 0
assert not {"torch", "transformers", "matplotlib"} & set(sys.modules)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_module_and_version():
    """`python -m vtc` is the same command."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vtc", "--version"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, f"vtc {vtc.__version__}")


def test_help_has_examples(capsys):
    """Each command's help shows how to call it."""
    alone = ("list", "show", "validate", "check", "eval", "bench")
    for command in ([], *([name] for name in alone), ["eval", "score"], ["eval", "tasks"]):
        code, out, _ = run(capsys, *command, "--help")
        assert code == 0
        assert re.search(r"Examples:\n\s+vtc ", out), command
    assert run(capsys)[1].startswith("Usage: vtc")


@pytest.mark.parametrize("family", [None, "llava", "qwen2_5_vl"])
def test_show_round_trip(capsys, tmp_path, family):
    """What `show` prints is a strategy file that resolves to the same."""
    arguments = ["show", "hiprune", "--keep", "96", "--set", "alpha=0.2"]
    code, out, _ = run(capsys, *arguments, *(["--family", family] if family else []))
    assert code == 0
    file = tmp_path / "mine.yaml"
    file.write_text(out)
    expected = vtc.load_strategy("hiprune", family, keep=96, alpha=0.2)
    assert yaml.safe_load(out) == expected.dump()
    assert vtc.load_strategy(file, family).dump() == expected.dump()


@pytest.mark.parametrize("strategy", ["hiprune+transprune", "hiprune_transprune", "transprune", "visiondrop"])
@pytest.mark.parametrize("keep", [None, "0.3"])
def test_show_inside(capsys, tmp_path, strategy, keep):
    """Stages inside the language model and compositions round-trip; the comments say what each layer sees."""
    arguments = ["show", strategy, "--family", "qwen2_vl", *(["--keep", keep] if keep else [])]
    out = run(capsys, *arguments)[1]
    file = tmp_path / "mine.yaml"
    file.write_text(out)
    expected = vtc.load_strategy(strategy, "qwen2_vl", **({"keep": float(keep)} if keep else {}))
    assert vtc.load_strategy(file, "qwen2_vl").dump() == expected.dump() == yaml.safe_load(out)
    code, commented, _ = run(capsys, *arguments, "--layers", "28", "--tokens", "1000")
    assert (code, yaml.safe_load(commented)) == (0, expected.dump())
    assert commented.endswith(out)
    comments = commented.removesuffix(out).splitlines()
    assert all(line.startswith("#") for line in comments)
    if keep:
        share = float(re.search(r"([\d.]+)% of the image's", "".join(comments))[1])
        assert abs(share - 30) < 0.3


def test_show_schedule(capsys):
    """Published numbers: TransPrune on LLaVA-1.5-7B."""
    out = run(capsys, "show", "transprune", "--layers", "32", "--tokens", "576")[1]
    found = re.findall(r"^#   layers (\d+)-(\d+) +(\d+)$", out, re.MULTILINE)
    assert found == [("0", "6", "576"), ("7", "8", "504"), ("9", "11", "360"), ("12", "31", "72")]
    costs = ["1.56 T of 3.82 T, 40.8%", "3.11 T of 7.63 T, 40.8%"]
    assert [line.split("  ")[-1].strip() for line in out.splitlines() if "multiply-add" in line] == costs
    assert "#   mean 236.2, 41.0% of the image's tokens\n" in out
    out = run(capsys, "show", "hiprune", "--layers", "32", "--tokens", "576")[1]
    assert re.findall(r"^#   (.+)$", out, re.MULTILINE)[0].split() == ["layers", "0-31", "144"]
    out = run(capsys, "show", "fastv", "--layers", "2", "--tokens", "9")[1]
    assert re.findall(r"^#   (layer .+)$", out, re.MULTILINE)[-1].split() == ["layer", "1", "4"]


def test_validate_composed(capsys, tmp_path):
    """A+B by name and by file; a part that does not fit is exit code 1, a part that does not exist exit code 2."""
    good = [f"{family}: ok" for family in vtc.families()]
    file, bad = tmp_path / "mine.yaml", tmp_path / "bad.yaml"
    file.write_text(
        "stages: [{method: hiprune, keep: 0.5}, {method: transprune, layers: [3, 9], ratios: [0.5, 0.1]}]\n"
    )
    for strategy in ("hiprune+transprune", "visiondrop", file, f"{file}+fastv", f"uniform+{tmp_path}/mine2.yaml"):
        (tmp_path / "mine2.yaml").write_text("stages: [{method: fastv}]\n")
        code, out, err = run(capsys, "validate", strategy)
        assert (code, out.splitlines(), err) == (0, good, ""), strategy
    wrong = {
        "stages: [{method: transprune, layers: [9, 3], ratios: [0.5, 0.1]}]": "do not rise",
        "stages: [{method: transprune, layers: [9], ratios: [0.5, 0.1]}]": "1 layers and 2 ratios",
        "keep: 0.1\nstages: [{method: transprune}]": "out of reach",
        "stages: [{method: fastv}, {method: hiprune, keep: 0.5}]": "at most one at the projector, first",
        "stages: [{method: hiprune}, {method: fastv}]": "names no budget",
    }
    for text, expected in wrong.items():
        bad.write_text(text)
        code, out, err = run(capsys, "validate", bad)
        assert (code, len(out.splitlines()), err) == (1, len(good), "")
        assert all(": error: " in line and expected in line for line in out.splitlines()), out
    assert run(capsys, "validate", "transprune+hiprune")[0] == 1
    code, out, err = run(capsys, "validate", "hiprune+trnsprune")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "did you mean 'transprune'" in err


EVAL = ["eval", "--model", "demo", "--strategy", "hiprune", "--keep", "0.5", "--tasks", "demo", "--limit", "2"]


def changed(**options: str) -> list[str]:
    """The arguments of a small evaluation with some options replaced or added."""
    arguments = dict(zip(EVAL[1::2], EVAL[2::2]))
    arguments.update({f"--{name}": value for name, value in options.items()})
    return ["eval", *(part for pair in arguments.items() for part in pair)]


BAD = {
    "no-command": (["lst"], "did you mean 'list'"),
    "no-option": (["list", "--jsn"], "--jsn"),
    "show-nothing": (["show"], "strategy"),
    "show-unknown": (["show", "hiprun"], "did you mean 'hiprune'"),
    "show-family": (["show", "hiprune", "--family", "llama"], "did you mean 'llava'"),
    "show-keep": (["show", "hiprune", "--keep", "abc"], "keep='abc' is not a number"),
    "show-set": (["show", "hiprune", "--set", "alpha"], "possible: KEY=VALUE"),
    "show-set-key": (["show", "hiprune", "--set", "alpa=1"], "did you mean 'alpha'"),
    "show-set-type": (["show", "hiprune", "--set", "alpha=x"], "alpha='x' has type str"),
    "show-composed": (["show", "hiprune+trnsprune"], "did you mean 'transprune'"),
    "show-composed-order": (["show", "transprune+hiprune"], "at most one at the projector, first"),
    "show-composed-set": (["show", "hiprune+transprune", "--set", "alpha=0.1"], "hiprune.alpha, transprune.alpha"),
    "show-layers": (["show", "transprune", "--layers", "32"], "--tokens is missing"),
    "show-tokens": (["show", "transprune", "--tokens", "576"], "--layers is missing"),
    "show-layers-1": (["show", "transprune", "--layers", "1", "--tokens", "576"], "--layers"),
    "show-layers-text": (["show", "transprune", "--layers", "x", "--tokens", "576"], "--layers"),
    "show-layers-few": (["show", "fastv", "--layers", "4", "--tokens", "9", "--set", "K=7"], "beyond the 4 layers"),
    "show-reach": (["show", "fastv", "--layers", "4", "--tokens", "100", "--keep", "20"], "out of reach for fastv"),
    "validate-missing": (["validate", "nothing.yaml"], "'nothing.yaml' does not exist"),
    "validate-family": (["validate", "hiprune", "--family", "llva"], "did you mean 'llava'"),
    "eval-strategy": (changed(strategy="none,hiprun"), "did you mean 'hiprune'"),
    "eval-strategy-twice": (changed(strategy="none,none"), "'none' is given twice"),
    "eval-keep-twice": (changed(keep="0.5,0.50"), "two runs would be called"),
    "eval-composed": (changed(strategy="none,hiprune+transprne"), "did you mean 'transprune'"),
    "eval-reach": (changed(strategy="fastv", keep="0.5,0.1"), "fastv-keep0.1: keep=0.1 of the visual tokens"),
    "eval-task": (changed(tasks="dmo"), "unknown task 'dmo': did you mean 'demo'"),
    "eval-model-folder": (changed(model="./nowhere"), "'./nowhere' does not exist"),
    "eval-keep-0": (changed(keep="0"), "keep=0 is out of range"),
    "eval-keep-text": (changed(keep="abc"), "keep='abc' is not a number"),
    "eval-keep-empty": (changed(keep="0.5,"), "empty entry"),
    "eval-keep-none": (changed(strategy="none", keep="7.5"), "keep=7.5 is out of range"),
    "eval-set": (changed(set="alpa=0.1"), "did you mean 'alpha'"),
    "eval-set-keep": (changed(set="keep=0.1"), "possible: --keep"),
    "eval-split": (changed(split="val"), "split='val' is unknown to task 'demo'; possible: test, tune, train"),
    "eval-limit": (changed(limit="0"), "--limit 0 is out of range; possible: a whole number >= 1"),
    "eval-limit-text": (changed(limit="many"), "--limit 'many' is out of range"),
    "eval-batch": (changed(**{"batch-size": "-1"}), "--batch-size '-1' is out of range"),
    "eval-device": (changed(device="abacus"), "--device 'abacus' cannot be used"),
    "eval-model-args": (changed(model_args="dtype"), "--model_args 'dtype'"),
    "eval-suite": (["eval", "--suite", "dmo", "--output", "x"], "unknown suite 'dmo': did you mean 'demo'"),
    "eval-nothing": (["eval"], "--model is missing"),
    "eval-dialect": (changed(dialect="llva"), "unknown dialect 'llva': did you mean 'llava'"),
    "eval-place": (changed(tasks="pope", **{"dataset-path": "no/where/at"}), "'no/where/at' does not exist"),
    "eval-place-empty": (changed(tasks="pope", **{"dataset-path": "pope="}), "has an empty path"),
    "eval-place-demo": (changed(**{"dataset-path": "demo=x"}), "is not for task 'demo'"),
    "eval-place-tasks": (changed(tasks="pope,mme", **{"dataset-path": "."}), "has nothing for task 'pope'"),
    "eval-against": (changed(against="hiprun"), "did you mean 'hiprune'"),
    "eval-offline": (changed(tasks="pope"), "possible: --dataset-path with a local copy"),
    "score-nothing": (["eval", "score", "no/where"], "'no/where'"),
    "score-task": (["eval", "score", "x.jsonl", "--tasks", "pop"], "did you mean 'pope'"),
    "score-tasks": (["eval", "score", ".", "--tasks", "pope,mme"], "is not one benchmark"),
    "score-file": (["eval", "score", "x.jsonl", "--tasks", "pope"], "'x.jsonl' does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(capsys, tmp_path, name):
    """One line on stderr that names the value; exit code 2; nothing on stdout."""
    arguments, expected = BAD[name]
    if arguments[0] == "eval" and len(arguments) > 1 and not {"--output", "score"} & set(arguments):
        arguments = [*arguments, "--output", tmp_path / "out"]
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("vtc: error: ")
    assert expected.lower() in err.lower()


def test_bad_places(capsys, tmp_path):
    """An output folder that cannot be, a model folder without a model."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, *EVAL, "--output", tmp_path / "file" / "out")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--output" in err
    code, _, err = run(capsys, *changed(model=str(tmp_path / "empty")), "--output", tmp_path / "out")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no config.json" in err


def test_no_output(capsys):
    """Results need a place."""
    code, _, err = run(capsys, *EVAL)
    assert (code, err.strip()) == (2, "vtc: error: --output is missing; see `vtc eval --help`")


def test_demo_suite_is_valid():
    """The shipped suites resolve."""
    from vtc.eval.running.eval_settings import settings_from
    from vtc.eval.running.plan import plan

    settings = settings_from("demo", {"model": None, "strategy": None, "keep": "0.5", "tasks": None, "limit": None,
                                      "output": "anywhere"})  # fmt: skip
    assert settings.limit == 200
    assert [run.name for run in plan(settings)][:2] == ["none", "random-keep0.5"]
    settings = settings_from("inside", {"model": None, "strategy": None, "tasks": None, "limit": None, "output": "x"})
    names = [run.name for run in plan(settings, "llava")]
    assert names[:3] == ["none", "hiprune-keep0.25", "fastv-published"]
    assert names[-2:] == ["hiprune+fastv-published", "hiprune_transprune-published"]
