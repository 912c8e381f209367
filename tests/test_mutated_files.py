"""Files that vtc wrote and something changed: the commands that read them give a result, or one short line."""

import csv
import functools
import io
import re
import shutil
import warnings
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from PIL import Image

from tests.helpers_mutated_files import mutated
from tests.helpers_report import demo_job, made, sweep
from tests.test_bench_serving import two_rounds
from vtc.bench.results import Results
from vtc.bench.results import read as read_bench
from vtc.bench.serving import serving_table
from vtc.bench.serving.ratios import SERVING
from vtc.bench.speed_rows import SPEED
from vtc.bench.speed_table import compared, table
from vtc.bench.speed_table import lines as bench_lines
from vtc.core.errors import VtcError
from vtc.eval import papers, score
from vtc.eval.inspect.page import page
from vtc.eval.inspect.record import read as read_record
from vtc.eval.models import load
from vtc.eval.papers import load_card, show
from vtc.eval.report import plots, report
from vtc.eval.runner import evaluate
from vtc.eval.running.eval_settings import EvalSettings
from vtc.eval.sweep import work
from vtc.eval.sweep.engine import Asked
from vtc.eval.sweep.engine import sweep as run_sweep
from vtc.io.escape import visible
from vtc.io.files import write_json
from vtc.io.terminal import Terminal

BOX = [[0, 0, 4, 8], [4, 0, 8, 8]]
RECORD = {
    "schema": "vtc.inspect/1", "created": "2026-01-01", "versions": {"vtc": "0.1.0", "numpy": None},
    "model": {"name": None, "family": "llava", "layers": 4}, "question": "What?", "reference": "a",
    "max_new_tokens": 4, "picture": {"source": "a.png", "width": 8, "height": 8}, "tokens": 2,
    "views": [{"name": "picture", "offsets": [0, 1], "boxes": BOX, "crops": [[0, 0, 8, 8]]}], "full": {"answer": "a"},
    "runs": [{
        "strategy": "hiprune", "keep": 0.5, "average": 1.5, "last": 1, "answer": "b", "notes": ["n"], "resolved": {},
        "steps": [
            {"stage": "hiprune", "layer": None, "before": 2, "after": 2, "kept": [0, 1], "merged_into": None},
            {"stage": "fastv", "layer": 2, "before": 2, "after": 1, "kept": [1], "merged_into": [1, 1]},
        ],
    }],
}  # fmt: skip
SPREAD = {"median": 0.5, "min": 0.25, "max": 1.0}
SYSTEM = {**dict.fromkeys(("vision", "selection", "prefill", "ttft", "decode", "rate"), SPREAD), "peak_bytes": 9e6,
          "kv_bytes": 5e5}  # fmt: skip
BENCH = {
    "schema": "vtc.bench/1", "settings": {"preset": "tiny"}, "environment": {"torch": "2"}, "definitions": {},
    "rows": [
        {
            "strategy": "hiprune", "keep": "0.25", "batch": 1, "prompt": 64, "asked": asked, "resolved": {},
            "tokens": {"visual": asked, "average": 16.0}, "systems": {"baseline": SYSTEM, "strategy": SYSTEM},
            "ratios": {"ttft/baseline": SPREAD}, "oracle": {"missing": "it merges"},
            "scoring": {"median": 0.1, "observed": 1, "depth": 4},
        }
        for asked in (64, 128)
    ],
}  # fmt: skip
ENGINES = {"settings": {"preset": "tiny"}, "environment": {"cores": 2}}
SWEEP = """
limit: 2
space: {strategy: [uniform], keep: [0.5]}
objectives: [accuracy, tokens]
"""


@pytest.fixture(scope="module")
def model():
    """The demo model, loaded once."""
    return load("demo", {}, None)


@pytest.fixture(scope="module")
def originals(model, tmp_path_factory):
    """Sound folders of every command."""
    root = tmp_path_factory.mktemp("sound")
    made(root / "results", [demo_job("none", 0.9, 8), demo_job("hiprune-keep0.25", 0.7, 8)])
    sweep(root / "search", trials=2, n=4)
    evaluate(asked(root / "eval"), loaded=model, quiet=True)
    write_json(root / "inspect" / "selection.json", RECORD)
    Image.new("RGB", (8, 8)).save(root / "inspect" / "picture.png")
    write_json(root / "bench" / "results.json", BENCH)
    write_json(root / "vllm" / "results.json", {"schema": SERVING.schema, **ENGINES, "rows": two_rounds()})
    with pytest.MonkeyPatch.context() as patch:
        lean(patch, model)
        grid(root / "sweep", Terminal(file=io.StringIO()))
    return root


def lean(patch: pytest.MonkeyPatch, model: object) -> None:
    """One model and one card for all, and no pictures: they show what the texts say, and take most of the time."""
    patch.setattr(work, "load", lambda *_: model)
    patch.setattr("vtc.eval.runner.draw", lambda _, path: path)
    patch.setattr(score, "draw", lambda _, path: path)
    patch.setattr(papers, "load_card", functools.cache(load_card))
    for kind in ("scatter", "trials", "bars"):
        patch.setattr(plots, kind, lambda *_: Element("svg"))


def asked(folder: Path) -> EvalSettings:
    """What `vtc eval` is asked, the second time as the first."""
    return EvalSettings(folder, strategies=("none", "uniform"), keeps=(0.25,), limit=2)


def grid(folder: Path, console: Terminal) -> None:
    """`vtc sweep`, from the start or what is left of it."""
    file = folder.with_suffix(".yaml")
    file.write_text(SWEEP, encoding="utf-8")
    run_sweep(str(file), Asked(folder), console)


def draw_again(folder: Path, console: Terminal) -> str:
    """`vtc inspect --from` without the figure."""
    return page(*read_record(folder))


def bench(folder: Path, console: Terminal) -> None:
    """`vtc bench compare`, the table and the lines of `vtc bench`, and its start on a folder with results."""
    data = read_bench(folder, SPEED)
    console.print(compared(data, data))
    console.print(table(data["rows"]))
    for line in bench_lines(data["rows"]):
        console.say(line)
    Results(SPEED, folder, BENCH["settings"], BENCH["environment"])


def engines(folder: Path, console: Terminal) -> None:
    """`vtc bench compare`, and what `vtc bench serving` says of a folder that is complete."""
    data = read_bench(folder, SPEED, SERVING)
    rows = Results(SERVING, folder, *ENGINES.values()).rows
    console.print(serving_table.compared(data, data))
    console.print(serving_table.table(rows))
    for line in serving_table.lines(rows, 2):
        console.say(line)


COMMANDS = {
    "report": ("results", lambda folder, _: report([folder])),
    "report of a search": ("search", lambda folder, _: report([folder])),
    "score": ("eval", lambda folder, console: score.score_folder(folder, None, None, None, False)),
    "against": ("results", lambda folder, console: show(["hiprune"], folder, console)),
    "eval": ("eval", lambda folder, console: evaluate(asked(folder), console)),
    "sweep": ("sweep", grid),
    "inspect": ("inspect", draw_again),
    "bench": ("bench", bench),
    "vllm": ("vllm", engines),
}
CASES = {"report": 150, "report of a search": 60, "score": 80, "against": 130, "eval": 30, "sweep": 12,
         "inspect": 330, "bench": 150, "vllm": 150}  # fmt: skip


def outcome(name: str, original: Path, place: Path, seed: int, capsys) -> str | None:
    """What a command says of a folder with one changed file: None for a result, or the error's line.

    Checks all that it has printed and written.
    """
    shutil.copytree(original, place)
    files = sorted(f for f in place.rglob("*") if f.suffix in (".json", ".jsonl"))
    file = files[seed % len(files)]
    file.write_bytes(mutated(file.read_bytes(), seed))
    console = Terminal(file=io.StringIO(), width=120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            html = COMMANDS[name][1](place, console)
            said = None
        except VtcError as error:
            html, said = "", str(error)
    printed = capsys.readouterr()
    texts = [console.file.getvalue(), printed.out, printed.err, html if isinstance(html, str) else ""]
    texts += [f.read_text("utf-8") for f in place.iterdir() if f.suffix in (".html", ".md", ".csv")]
    for text in texts:
        assert visible(text) == text
        assert "<script>alert" not in text or "</html>" not in text
    if (place / "report.csv").is_file():
        for row in csv.reader((place / "report.csv").read_text("utf-8").splitlines()):
            assert not [cell for cell in row if re.match(r"[=+@\t\r]|-(?![\d.])", cell)]
    return said


@pytest.mark.parametrize("share", [16, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", COMMANDS)
def test_changed_files(name, share, originals, model, tmp_path, monkeypatch, capsys):
    """A result or one line of at most 500 characters, whatever became of a file; nothing else, and nothing live."""
    lean(monkeypatch, model)
    monkeypatch.setattr("vtc.eval.runner.load", lambda *_: model)
    refused, cases = 0, max(6, CASES[name] // share)
    for seed in range(cases):
        said = outcome(name, originals / COMMANDS[name][0], tmp_path / str(seed), seed, capsys)
        assert said is None or 0 < len(said) <= 500 and said == " ".join(said.split()), seed
        refused += said is not None
    assert 0 < refused < cases
