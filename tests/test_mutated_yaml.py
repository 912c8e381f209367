"""Over a thousand wrong YAML texts, fed to what reads them: a result, or one short line; nothing else."""

import random
from pathlib import Path

import pytest

from tests.helpers_mutated_yaml import VALUES, WHOLE, mutated, shipped
from tests.test_cli import run
from vtc.cli import app as cli
from vtc.config.knobs import parse_set
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError, UnsupportedError, VtcError
from vtc.eval.papers import show as show_cards
from vtc.eval.running.eval_settings import settings_from
from vtc.eval.running.plan import plan
from vtc.eval.sweep.engine import Asked, sweep
from vtc.eval.tasks import TASKS
from vtc.io.plain_yaml import load, parse
from vtc.io.terminal import Terminal
from vtc.vllm import arguments

SERVED = "port: 8001\nhf-overrides:\n  text_config: {a: 1}\nenable-lora: true\nname: [a, b]\nmm-processor-kwargs.a: 1\n"
OPTIONS = (
    "model", "strategy", "output", "keep", "set", "tasks", "limit", "batch_size", "seed", "model_args", "system",
    "dialect", "dataset_path", "against", "split", "pad_square", "device", "max_new_tokens", "overwrite",
)  # fmt: skip


def strategies(file: Path) -> None:
    cli.show(str(file), "qwen2_vl", None, None, 32, 576)


def validated(file: Path) -> None:
    cli.validate(str(file), "llava")


def suites(file: Path) -> None:
    settings = settings_from(str(file), {**dict.fromkeys(OPTIONS), "output": "out"})
    for name in settings.tasks:
        settings.place(TASKS[name](dialect=settings.dialect).name)
    plan(settings)


def sweeps(file: Path) -> None:
    sweep(str(file), Asked(file.parent / "out", dry_run=True), Terminal(quiet=True))


def cards(file: Path) -> None:
    show_cards([str(file)], None, Terminal(quiet=True))


def served(file: Path) -> None:
    words = ["--config", str(file)]
    arguments.values(words)
    arguments.with_overrides(words, {"vtc": 1})


def setting(file: Path) -> None:
    key, value = parse_set("alpha=" + file.read_bytes().decode("utf-8", "surrogateescape"))
    resolve("hiprune", **{key: value})


READERS = {
    "show": (strategies, shipped("strategies"), 250), "validate": (validated, shipped("strategies"), 250),
    "suite": (suites, shipped("eval"), 150), "sweep": (sweeps, shipped("sweeps"), 150),
    "card": (cards, shipped("papers"), 50), "serve": (served, [SERVED], 200),
    "set": (setting, ["0.1", "[1, 2]", "{a: 1}"], 150),
}  # fmt: skip


def read(reader, file: Path, data: bytes) -> None:
    """Accepts a result, or one printable line of at most 500 characters with what a command writes before it."""
    file.write_bytes(data)
    try:
        reader(file)
    except VtcError as error:
        line = f"vtc: error: {error}"
        assert line.isprintable()
        assert len(line) <= 500
    except cli.typer.Exit:
        pass  # validate has printed the lines


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", READERS)
def test_wrong_yaml_is_one_line(name, share, tmp_path, monkeypatch, capsys):
    """Mutations of every shipped file, and texts that are hostile as a whole."""
    monkeypatch.chdir(tmp_path)
    reader, texts, count = READERS[name]
    draw, before = random.Random(name), sorted(tmp_path.iterdir())
    for number in range(count // share):
        read(reader, tmp_path / "mine.yaml", mutated(texts[number % len(texts)], draw))
    for data in WHOLE:
        read(reader, tmp_path / "mine.yaml", data)
    assert all(line.isprintable() and len(line) <= 500 for line in capsys.readouterr().out.splitlines())
    (tmp_path / "mine.yaml").unlink()
    assert sorted(tmp_path.iterdir()) == before, "reading wrote something"


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_wrong_values_are_one_line(number, tmp_path, monkeypatch, capsys):
    """Each hostile value where a budget, a knob, a stage, a limit, a parameter or an option stands."""
    monkeypatch.chdir(tmp_path)
    value = VALUES[number]
    for reader, text in (
        (strategies, "keep: {}\nstages: [{{method: hiprune}}]"),
        (strategies, "stages: [{{method: hiprune, keep: {}}}]"),
        (strategies, "keep: 0.5\nstages: {}"), (strategies, "keep: 0.5\nstages: [{{method: fastv, K: {}}}]"),
        (suites, "model: demo\nstrategy: none\nlimit: {}"), (suites, "model: demo\nstrategy: {}\nkeep: 0.5"),
        (suites, "model: demo\nstrategy: hiprune\nset: {}"), (sweeps, "space: {{strategy: [hiprune], alpha: {}}}"),
        (sweeps, "space: {{strategy: {}, keep: [0.5]}}"), (served, "hf-overrides: {}"), (served, "port: {}"),
        (setting, "{}"),
    ):  # fmt: skip
        data = text.format(value) if reader is not setting else value
        read(reader, tmp_path / "mine.yaml", data.encode("utf-8", "surrogatepass"))
    capsys.readouterr()


def test_what_a_text_may_be():
    """Plain data, small aliases and merges; each key once; no other types, no circles, nothing without end."""
    merged = parse("a: &a {x: 1}\nb: {c: &c {<<: *a, y: 2}}\nd: {<<: *c, x: 3}\ne: [*a, *a]", "text")
    assert merged == {"a": {"x": 1}, "b": {"c": {"x": 1, "y": 2}}, "d": {"x": 3, "y": 2}, "e": [{"x": 1}] * 2}
    wrong = {
        "a: 1\nb: 2\na: 3": "the key 'a' stands twice", "{1: a, 0x1: b}": "the key 1 stands twice",
        "&a [*a]": "inside of what it stands for", "{[1]: 2}": "a list or a mapping", "a: 2020-01-01": "'timestamp'",
        "!!set {a}": "'set'", "!!python/name:os.system ''": "python/name", "[" * 100: "40 levels",
        "- " * 100: "40 levels", "a: " + "9" * 5000: "5000 characters", str(2**63): "2**63", "!!int x": "its tag",
        '"\\e"': "\\x1b", "a" * 200_001: "200000",
        "- &a0 [x]\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, 60)): "or 40 levels",
        "[" + ", ".join(["&b0 [x]"] + [f"&b{i} [{f'*b{i - 1}, ' * 9}]" for i in range(1, 9)]) + "]": "20000 values",
    }  # fmt: skip
    for text, part in wrong.items():
        with pytest.raises(ConfigError) as caught:
            parse(text, "text")
        assert part in str(caught.value)


def test_files_that_are_no_text(tmp_path):
    """A folder, a missing file, one in UTF-16, one that is too large; a byte-order mark does not matter."""
    file = tmp_path / "mine.yaml"
    for data, part in ((None, "does not exist"), ("a: 1".encode("utf-16"), "UTF-8"), (b"a" * 10**6, "too large")):
        if data is not None:
            file.write_bytes(data)
        with pytest.raises(ConfigError, match=part):
            load(file, "mine", "a file")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, "mine", "a file")
    file.write_bytes(b"\xef\xbb\xbfa: 1")
    assert load(file, "mine", "a file") == {"a": 1}


@pytest.mark.parametrize("words", [["validate"], ["show"], ["eval", "score"], ["report"], ["eval", "--against"]])
@pytest.mark.parametrize("word", ["x" * 6000, "9" * 5000, "\x1b[31mred", "\udc80", "a\0b", " ", "[["])
def test_wrong_names_are_one_line(capsys, words, word):
    """What cannot be a name or a path of anything."""
    code, out, err = run(capsys, *words, word)
    assert (code, out) == (2, "")
    assert err[:-1].isprintable()
    assert len(err) <= 500


@pytest.mark.parametrize("kind", [ConfigError, UnsupportedError])
def test_messages_are_short_and_printable(kind):
    """Whatever a message quotes, what stands before and after it stays."""
    message = str(kind("first \x1b[31m\n" + "x" * 10_000 + "\udc80 possible: last"))
    assert message.isprintable()
    assert message.startswith("first \\x1b[31m x")
    assert message.endswith("\\udc80 possible: last")
    assert len(message) <= 460
