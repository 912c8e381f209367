"""Multiple-choice benchmarks: answers to scores to figures, by numbers counted by hand."""

import math

import pytest

from tests.helpers_tasks import docs_of, figures_of, opened, scored, tallies
from vtc.eval.tasks import DIALECTS, TASKS

NAN = float("nan")


def check(found: dict, **expected: float) -> None:
    """The figures are these; `a__b` stands for `a/b`."""
    wanted = {name.replace("__", "/").replace("_and_", " "): value for name, value in expected.items()}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, nan_ok=True)


# Task, reference, answer, then what each dialect reads and whether that is right (llava, lmms, qwen).
PAIR = {"answer": "B", "options": {"A": "winter", "B": "summer"}}
ANSWERS = [
    ("mmbench_en", PAIR, "B", ("B", 1), ("B", 1), ("B", 1)),
    ("mmbench_en", PAIR, "A", ("A", 0), ("A", 0), ("A", 0)),
    ("mmbench_en", PAIR, "It is summer.", ("B", 1), ("B", 1), ("B", 1)),
    ("mmbench_en", PAIR, "winter or summer", (None, 0), (None, 0), (None, 0)),
    ("mmbench_en", PAIR, "clearly B!", ("B", 1), ("B", 1), ("B", 1)),
    ("mmbench_en", PAIR, "it-is-B", ("B", 1), ("B", 1), (None, 0)),  # only the letter finder looks inside of words
    ("mmbench_cn", PAIR, "B. summer", ("B", 1), ("B", 1), ("B", 1)),
    ("scienceqa_img", {"answer": "B", "n_choices": 2}, "B", ("B", 1), ("B", 1), ("B", 1)),
    ("scienceqa_img", {"answer": "B", "n_choices": 2}, "b", (None, 0), ("B", 1), ("B", 1)),
    ("scienceqa_img", {"answer": "B", "n_choices": 2}, "B. no", ("B", 1), ("B", 1), ("B", 1)),
    ("scienceqa_img", {"answer": "B", "n_choices": 2}, "B.no", (None, 0), ("B", 1), ("B", 1)),
    ("scienceqa_img", {"answer": "B", "n_choices": 2}, "The answer is B.", ("B", 1), (None, 0), (None, 0)),
    ("scienceqa_img", {"answer": "B", "n_choices": 2}, "C", (None, 0), ("C", 0), ("C", 0)),
    ("seedbench", "B", "B", ("B", 1), ("B", 1), ("B", 1)),
    ("seedbench", "B", "B. Two", ("B", 0), ("B", 1), ("B", 1)),
    ("seedbench", "B", "b", ("B", 0), ("B", 1), ("B", 1)),
    ("seedbench", "B", "Two", (None, 0), (None, 0), (None, 0)),
    ("mmstar", {"answer": "C", "axis": "geometry"}, "C", *[("C", 1)] * 3),
    ("mmstar", {"answer": "C", "axis": "geometry"}, "The answer is (C)", *[("C", 1)] * 3),
    ("mmstar", {"answer": "C", "axis": "geometry"}, "none of them", *[(None, 0)] * 3),
    ("realworldqa", "C", "C.", *[("C", 1)] * 3),
    ("realworldqa", "C", "straight on", *[(None, 0)] * 3),
    ("realworldqa", "Uphill", "uphill.", *[("uphill", 1)] * 3),
    ("realworldqa", "3", "three", *[("three", 0)] * 3),
    ("mmmu_val", PAIR, "(B)", *[("B", 1)] * 3),
    ("mmmu_val", PAIR, "A or rather B", *[("B", 1)] * 3),
    ("mmmu_val", PAIR, "I cannot say", *[(None, 0)] * 3),
    ("mmmu_val", {"answer": "2.5"}, "The force is 2.50 N", *[(["2.5", "2.50 n"], 1)] * 3),
    ("mmmu_val", {"answer": ["neon", "Ne gas"]}, "Neon", *[(["neon"], 1)] * 3),
    ("mmmu_val", {"answer": "2.5"}, "nan", *[(["nan"], 0)] * 3),
]


@pytest.mark.parametrize("name, reference, text, llava, lmms, qwen", ANSWERS)
def test_answers(name, reference, text, llava, lmms, qwen):
    """What is read, and whether it is right."""
    for dialect, (parsed, right) in zip(DIALECTS, (llava, lmms, qwen)):
        score = TASKS[name](dialect=dialect).score(reference, text)
        assert (score["parsed"], score["correct"]) == (parsed, right), dialect


@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_mmbench_figures(name, dialect):
    """One wrong rotation makes its question wrong, and only a row of seven or five."""
    task, docs = opened(name, dialect)
    right = [doc["answer"] for doc in docs_of(docs)]
    assert len(right) == {"mmbench_en": 7, "mmbench_cn": 5}[name]
    check(figures_of(task, scored(task, docs_of(docs), right)), accuracy=1, vanilla=1)
    wrong = ["A" if i == 3 else letter for i, letter in enumerate(right)]  # the second question's second rotation
    found = figures_of(task, scored(task, docs_of(docs), wrong))
    questions = len({task.group(doc) for doc in docs_of(docs)})
    check(
        found, accuracy=1 - 1 / questions, vanilla=1 - 1 / len(right), macro=1 - 1 / questions,
        accuracy__coarse_perception=1, accuracy__logic_reasoning=0,
    )  # fmt: skip
    assert [task.ident(doc) for doc in docs_of(docs)][:4] == ["12", "1000012", "31", "1000031"]
    assert [task.group(doc) for doc in docs_of(docs)][:4] == ["12", "12", "31", "31"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scienceqa_figures(dialect):
    """Two of the three rows with a picture, the one without, so three of four."""
    task, docs = opened("scienceqa_img", dialect)
    assert task.reference(docs.text(2)) == {"answer": "B", "n_choices": 5}
    found = figures_of(task, scored(task, docs_of(docs), ["A", "C", "B", "B"]))
    check(found, img=2 / 3, all=3 / 4, accuracy__image=2 / 3, accuracy__text=1)
    assert set(found) == {"img", "all", "accuracy/image", "accuracy/text"}
    check(figures_of(task, scored(task, docs_of(docs)[2:3], ["A"])), img=NAN, all=0)
    saved = {"question_id": "9", "ground_truth": "C", "n_choices": 3, "has_image": False}
    assert (task.ident(saved), task.category(saved)) == ("9", "text")
    assert task.reference(saved) == {"answer": "C", "n_choices": 3}


@pytest.mark.parametrize("dialect, right", [("llava", 1), ("lmms", 2), ("qwen", 2)])
def test_seedbench_figures(dialect, right):
    """LLaVA's script takes the letter alone; the others what begins with it."""
    task, docs = opened("seedbench", dialect)
    found = figures_of(task, scored(task, docs_of(docs), ["B", "C. At a lake", "B"]))
    check(found, accuracy=right / 3)
    assert found["accuracy/scene understanding"] == right - 1
    assert {task.category(doc) for doc in docs_of(docs)} == {
        "instances counting", "scene understanding", "text understanding",
    }  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_mmmu_figures(dialect):
    """Right: a choice and both open ones; of five one holds no letter."""
    task, docs = opened("mmmu_val", dialect)
    assert [task.category(doc) for doc in docs_of(docs)] == ["Art_Theory", "Physics", "Music", "Physics", "Physics"]
    assert task.reference(docs.text(4)) == {"answer": ["neon", "Ne gas"]}
    rows = scored(task, docs_of(docs), ["A", "hard to tell", "B", "2.5", "It is neon"])
    check(
        figures_of(task, rows), accuracy=3 / 5, unparsed=1 / 5, macro=(1 + 0 + 2 / 3) / 3,
        accuracy__Art_Theory=1, accuracy__Music=0, accuracy__Physics=2 / 3,
    )  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
def test_mmstar_figures(dialect):
    """Axes: topic 1 of 1, emotion 1 of 2, geometry 0 of 1; coarse perception is the mean of its two."""
    task, docs = opened("mmstar", dialect)
    found = figures_of(task, scored(task, docs_of(docs), ["B", "A", "A", "A"]))
    check(found, average=(1 + 1 / 2 + 0) / 3, accuracy=2 / 4, accuracy__coarse_and_perception=3 / 4, accuracy__math=0)
    assert task.primary == "average"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_realworldqa_figures(dialect):
    """The choice and one of two open answers."""
    task, docs = opened("realworldqa", dialect)
    found = figures_of(task, scored(task, docs_of(docs), ["C", "4", "Uphill"]))
    check(found, accuracy=2 / 3, accuracy__choice=1, accuracy__open=1 / 2)


def test_a_question_with_a_failed_rotation_counts_its_answered_rows():
    """A tally takes the rows that were answered."""
    task, docs = opened("mmbench_en")
    rows = scored(task, docs_of(docs)[:1], ["B"])
    assert tallies(task, rows) == [{"n/coarse_perception": 1, "correct/coarse_perception": 1, "rows": 1, "right": 1}]
    assert not math.isnan(task.figures(tallies(task, rows)[0])["accuracy"])
