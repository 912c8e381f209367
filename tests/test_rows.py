"""What a row must hold: its columns, options and right answers, alike in all benchmarks; what is refused and when."""

import json
import math

import pytest

from tests.helpers_stub import Stub
from tests.helpers_tasks import FIXTURES, json_rows
from vtc.core.errors import ConfigError
from vtc.eval import runner
from vtc.eval.data.docs import FAULT, ROW, Docs, Source
from vtc.eval.runner import evaluate
from vtc.eval.running.eval_settings import EvalSettings
from vtc.eval.tasks import TASKS
from vtc.eval.tasks._rows import letter_of, options_of, plain, yes_or_no

OPTIONS = {"A": "apple", "B": "sky"}
CHOICES = {  # of each task with options: the column of options, and what of the first row is written otherwise
    "ai2d": "options", "scienceqa_img": "choices", "mmmu_val": "options", "mmbench_en": "options",
    "mmbench_cn": "options",
}  # fmt: skip


def first(name: str, **changes) -> dict:
    """The first row of a benchmark's fixture, changed."""
    return {**json_rows(FIXTURES / f"{name}.jsonl")[0], ROW: 0, **changes}


@pytest.mark.parametrize("held", [["apple", "sky"], ("apple", "sky"), "['apple', 'sky']", '["apple", "sky"]', OPTIONS,
                                  "{'A': 'apple', 'B': 'sky'}", {"a": "apple", "b": "sky", "C": None},
                                  ["apple", "sky", "nan", ""]])  # fmt: skip
def test_options(held):
    """Lists, mappings from letters, and texts that are one."""
    assert options_of(held) == OPTIONS


@pytest.mark.parametrize("held", [None, "", [], ["apple"], ["apple", ""], "apple, sky", "['apple' 'sky']", "[" * 4000,
                                  [["apple"], "sky"], [{"A": 1}, "sky"], 5, True, math.nan, "5", {"1": "a", "2": "b"},
                                  {"A": "a", "a": "b"}, ["x"] * 27, [math.inf, 1]])  # fmt: skip
def test_options_that_cannot_be(held):
    """Fewer than two, nested, or no list: one short line."""
    with pytest.raises(ConfigError, match="possible: ") as caught:
        options_of(held)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("answer", [1, 1.0, "1", "1.0", " 1 ", "B", "b", "B."])
def test_right_option(answer):
    """A letter, or a place from 0, as a number or a text."""
    assert letter_of(answer, OPTIONS) == "B"


@pytest.mark.parametrize("answer", [None, "", math.nan, math.inf, True, False, 2, 5, -1, 0.5, "2", "-1", "C", "AB",
                                    "9" * 5000, 10**30, [1], {"A": 1}, "sky", "²"])  # fmt: skip
def test_answers_that_are_no_option(answer):
    """Outside the options, or of a type that names none."""
    with pytest.raises(ConfigError, match="is no option of the row; possible: A, B") as caught:
        letter_of(answer, OPTIONS)
    assert len(str(caught.value)) < 250


def test_equal_options():
    """They matter only where one of them is the right one."""
    options = {"A": "apple", "B": "apple ", "C": "sky"}
    assert letter_of(2, options) == "C"
    with pytest.raises(ConfigError, match="options A and B are equal"):
        letter_of("A", options)


@pytest.mark.parametrize("name", CHOICES)
def test_choices_alike(name):
    """The same options and answers are read, and refused, in every benchmark that has them in one column."""
    task, column = TASKS[name](), CHOICES[name]
    for held in (["apple", "sky"], "['apple', 'sky']"):
        row = first(name, **{column: held}, answer=0.0)
        assert task.reference(row)["answer"] == "A"
        assert "A. apple\nB. sky" in task.prompt(row)
    for changes in ({"answer": 5}, {"answer": True}, {column: "apple, sky"}, {column: ["apple"]}, {column: ["a", "a"]}):
        with pytest.raises(ConfigError):
            task.asked(first(name, **{column: ["apple", "sky"], "answer": 0, **changes}))


@pytest.mark.parametrize("name, answer", [("seedbench", "E"), ("mmstar", "E"), ("realworldqa", "D"), ("mmstar", True),
                                          ("mme", "maybe"), ("mme", 1), ("pope", None), ("hallusion", "2"),
                                          ("gqa", None), ("gqa", ["yes"]), ("chartqa", True), ("chartqa", " "),
                                          ("realworldqa", None)])  # fmt: skip
def test_answers_that_cannot_be_right(name, answer):
    """Letters beyond the options, and other values than the benchmark's own."""
    column = "gt_answer" if name == "hallusion" else "answer"
    with pytest.raises(ConfigError):
        TASKS[name]().asked(first(name, **{column: answer}))


def test_answers_as_text():
    """Numbers are texts, whole ones without a point; yes and no in any case."""
    assert [plain(value, "answer") for value in (3, 3.0, 0.5, "x")] == ["3", "3", "0.5", "x"]
    assert [yes_or_no(value, "it") for value in ("Yes", "no.", " NO")] == ["yes", "no", "no"]


def test_blank_references_match_nothing():
    """A blank stands in every text, so it is no reference of a benchmark that asks what stands in the answer."""
    task = TASKS["ocrbench"]()
    assert task.reference({"answer": ["", "red"]})["answers"] == ["red"]
    with pytest.raises(ConfigError):
        TASKS["mmmu_val"]().reference(first("mmmu_val", options="[]", question_type="open", answer=["", "red"]))


@pytest.mark.parametrize("name", [name for name in TASKS if not name.startswith("demo")])
def test_columns(name):
    """Data without a column that is needed is refused, with those that it has; data without rows too."""
    task, rows = TASKS[name](), json_rows(FIXTURES / f"{name.removesuffix('_ocr')}.jsonl")
    task.check(Docs(rows, rows, {}, folder=FIXTURES))
    for column in [*(task.columns or ("question", "answer")), *([task.pictures] if task.pictures else [])]:
        names = (column,) if isinstance(column, str) else column
        left = [{key: value for key, value in row.items() if key not in names} for row in rows]
        with pytest.raises(ConfigError, match=f"'{name}' has no column '{names[0]}'.*; there are: ") as caught:
            task.check(Docs(left, left, {}))
        assert len(str(caught.value)) < 450
    with pytest.raises(ConfigError, match="has no row"):
        task.check(Docs([], [], {}))


def test_rows_that_are_none():
    """A row that is no object, or that cannot be decoded, has a name of its own and says what is wrong."""

    class Undecodable(list):
        def __getitem__(self, i):
            raise UnicodeDecodeError("utf-8", b"x", 0, 1, "bad byte")

    task = TASKS["pope"]()
    docs = Docs([5], [5], {}), Docs(Undecodable([{}]), Undecodable([{}]), {})
    for one, said in zip(docs, ("its type is int", "bad byte")):
        assert said in one.text(0)[FAULT]
        assert task.names(one.text(0)) == {"id": "row 0", "group": "row 0", "category": "pope"}
        with pytest.raises(ConfigError, match=said):
            task.asked(one.text(0))
        assert len(one.where(lambda doc: True)) == 1


@pytest.mark.parametrize(
    "name", [name for name in TASKS if name not in ("demo", "scienceqa_img") and TASKS[name].pictures]
)
def test_nothing_is_asked_blind(name):
    """A row without its picture is refused; only one that says that it goes without is asked."""
    task = TASKS[name]()
    for missing in (None, "", [], {"bytes": None, "path": None}):
        with pytest.raises(ConfigError, match="picture"):
            task.images(first(name.removesuffix("_ocr"), **dict.fromkeys(task.pictures, missing)))
    if name == "hallusion":
        assert task.images(first(name, image=None, visual_input="0")) == []
    if name == "mmmu_val":
        with pytest.raises(ConfigError, match="names no picture"):
            task.images(first(name, question="Who made this vase?"))


@pytest.mark.parametrize("value", ["half \ud800 a pair", "\udfff"])
def test_texts_that_cannot_be_written(value):
    """Half of a surrogate pair, in whatever is logged: an error, and a name that can be written."""
    task = TASKS["pope"]()
    for column in ("question", "category", "question_id"):
        row = first("pope", **{column: value, FAULT: None})
        with pytest.raises(ConfigError, match="^row 0 holds a lone surrogate that cannot be written$"):
            task.asked(row)
        assert all(name.encode() for name in task.names(row).values())


class Own(TASKS["chartqa"]):
    """A task of somebody's own, without a place on the hub."""

    name = "own"
    source = None


def test_task_without_a_source(tmp_path, monkeypatch):
    """It takes what --dataset-path names, and says so where nothing is named."""
    monkeypatch.setitem(TASKS._items, "own", Own)
    with pytest.raises(ConfigError, match="'own' has no data of its own; possible: --dataset-path"):
        Own().open()
    place = {"": str(FIXTURES / "chartqa.jsonl")}
    assert evaluate(EvalSettings(tmp_path / "o", tasks=("own",), dataset_path=place), loaded=Stub(), quiet=True) == 0
    assert Own.source is None
    assert Source(()).config is None


def run_rows(tmp_path, name: str, rows: list) -> dict:
    """The result of a benchmark on these rows."""
    (tmp_path / "pictures").symlink_to(FIXTURES / "pictures")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = EvalSettings(tmp_path / "o", tasks=(name,), dataset_path={"": str(tmp_path / "rows.jsonl")})
    evaluate(settings, loaded=Stub())
    return json.loads((tmp_path / "o" / "results.json").read_text())["runs"][0]["tasks"][name]


@pytest.mark.parametrize("name", ["textvqa", "vqav2", "vizwiz"])
def test_fewer_answers_than_the_rule_assumes(tmp_path, monkeypatch, name):
    """Ten are assumed; how many rows have fewer is said."""
    monkeypatch.setattr(runner, "draw", lambda summary, path: path)
    rows = json_rows(FIXTURES / f"{name}.jsonl")[:3]
    rows[0]["answers"], rows[1]["answers"] = "red", "['red', 'red']"
    found = run_rows(tmp_path, name, rows)
    assert found["remarks"] == [
        "2 of 3 samples have fewer than the 10 answers that the rule assumes: an exact answer may score below 1"
    ]


def test_unread_answers_are_remarked(tmp_path, monkeypatch, capsys):
    """The share of answers that no rule could read stands with the figures, and below the table."""
    monkeypatch.setattr(runner, "draw", lambda summary, path: path)
    found = run_rows(tmp_path, "seedbench", json_rows(FIXTURES / "seedbench.jsonl"))
    assert f"none: {found['remarks'][0]}" in capsys.readouterr().out
    unread = found["n_unparsed"]
    assert 0 < unread <= found["n"]
    assert found["remarks"] == [f"{unread} of {found['n']} answers could not be read and count as wrong"]
