"""Published figures from real answers, and the benchmarks' own scores of sets of answers, through the tasks.

The data is in `realdata` and `metrics` of the golden folders; without them the tests are skipped.
"""

import math

import pytest

from tests.helpers_tasks import docs_of, figures_of, golden_file, json_rows, scored, tallies
from vtc.eval.data.docs import ROW
from vtc.eval.tasks import DIALECTS, TASKS
from vtc.eval.tasks.mmbench_en import MMBenchEn

POPE = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def answered(task, rows: list[dict]) -> list[dict]:
    """Scored rows of answers that come with what is right."""
    return scored(task, [{**row, ROW: number} for number, row in enumerate(rows)], [row["pred"] for row in rows])


def test_pope_of_llava_15_13b():
    """The published 85.9, and all five figures of each category."""
    task = TASKS["pope"]()
    rows = answered(task, json_rows(golden_file("realdata", "pope_llava15_13b", "pope_llava_v1.5_13b.jsonl.gz")))
    assert len(rows) == len({row["id"] for row in rows}) == 8910
    found = figures_of(task, rows)
    per = {
        "adversarial": (0.855000, 0.909931, 0.788000, 0.844587, 0.433000),
        "popular": (0.874333, 0.952458, 0.788000, 0.862459, 0.413667),
        "random": (0.880069, 0.974444, 0.788000, 0.871360, 0.416838),
    }
    for category, expected in per.items():
        assert [found[f"{name}/{category}"] for name in POPE] == pytest.approx(expected, abs=5e-7)
    shown = [task.scale * found[name] for name in ("f1/adversarial", "f1/popular", "f1/random", task.primary)]
    assert shown == pytest.approx([84.4587, 86.2459, 87.1360, 85.9469], abs=5e-5)


def test_scienceqa_of_llava_15_13b():
    """The published 71.6 with a picture; 74.4 in all; each answer read as the official script reads it."""
    task = TASKS["scienceqa_img"]()
    saved = json_rows(golden_file("realdata", "scienceqa_llava15_13b", "scienceqa_llava_v1.5_13b.jsonl.gz"))
    rows = answered(task, saved)
    assert len(rows) == len({row["id"] for row in rows}) == 4241
    assert [row["score"]["correct"] for row in rows] == [float(row["official_correct"]) for row in saved]
    found = figures_of(task, rows)
    assert [100 * found[name] for name in ("img", "all")] == pytest.approx([71.6411, 74.3928], abs=5e-5)
    assert sum(row["category"] == "image" for row in rows) == 2017


@pytest.mark.parametrize("name, n", [("mmbench_en", 20), ("mmbench_cn", 34)])
def test_mmbench_samples(name, n):
    """Real rows and pictures: each language has its own, and right answers are right."""
    place = golden_file("realdata", "mmbench_samples", "questions.jsonl")
    for dialect in DIALECTS:
        task = TASKS[name](dialect=dialect)
        docs = task.open(place=str(place))
        assert len(docs) == len({task.ident(doc) for doc in docs_of(docs)}) == n
        rows = scored(task, docs_of(docs), [doc["answer"] for doc in docs_of(docs)])
        found = figures_of(task, rows)
        assert (found["accuracy"], found["vanilla"]) == (1, 1)
        assert all(len(task.images(docs[i])) == 1 and task.prompt(docs.text(i)).count("\nB. ") == 1 for i in range(n))


def sets(name: str) -> list[dict]:
    """The rows of a golden file with sets; there are some."""
    found = json_rows(golden_file("metrics", f"{name}.jsonl"))
    assert found
    return found


def test_pope_sets():
    """llava and its categories, where the script divides by zero 0 or nan here; lmms, whose yes ratio is of labels."""
    compared = 0
    for golden in sets("pope_sets"):
        llava, lmms = TASKS["pope"](), TASKS["pope"](dialect="lmms")
        found = figures_of(llava, answered(llava, golden["items"]))
        for category, expected in (golden["llava_by_category"] or {}).items():
            if expected is None:  # a denominator is 0
                assert 0 in (found[f"precision/{category}"], found[f"recall/{category}"])
                assert found[f"f1/{category}"] == 0
            else:
                assert {name: found[f"{name}/{category}"] for name in POPE} == pytest.approx(expected)
                compared += len(expected)
        if golden["llava"] is not None:
            pooled = {name: found["f1_pooled" if name == "f1" else name] for name in POPE}
            assert pooled == pytest.approx(golden["llava"])
            compared += len(pooled)
        found = figures_of(lmms, answered(lmms, golden["items"]))
        names = {"f1": "f1_pooled", "yes_ratio": "yes_labels"}
        assert {name: found[names.get(name, name)] for name in POPE} == pytest.approx(golden["lmms"])
        compared += len(POPE)
    assert compared > 24 * 5 * 2


@pytest.mark.parametrize("dialect", DIALECTS)
def test_mme_sets(dialect):
    """Perception, cognition and categories in points."""
    for golden in sets("mme_sets"):
        task = TASKS["mme"](dialect=dialect)
        items = [{**item, "question": f"question {number}"} for number, item in enumerate(golden["items"])]
        found = figures_of(task, answered(task, items))
        per = {name.removeprefix("accuracy/"): value for name, value in found.items() if "/" in name}
        assert per == pytest.approx(golden["by_category"])
        for name in ("perception", "cognition"):
            assert found[name] == pytest.approx(golden[name]) or (golden[name] == 0 and math.isnan(found[name]))
        assert found["total"] == pytest.approx(golden["perception"] + golden["cognition"])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_mmstar_sets(dialect):
    """The mean over axes of scores that are given."""
    for golden in sets("mmstar_sets"):
        task = TASKS["mmstar"](dialect=dialect)
        reference = {"answer": "A", "axis": ""}
        rows = [
            {"group": str(number), "category": "all",
             "score": task.score({**reference, "axis": item["l2_category"]}, "A" if item["score"] else "B")}
            for number, item in enumerate(golden["items"])
        ]  # fmt: skip
        found = figures_of(task, rows)
        assert found["average"] == pytest.approx(golden["average"])
        assert found["accuracy"] == pytest.approx(sum(item["score"] for item in golden["items"]) / len(rows))


@pytest.mark.parametrize("dialect, field", [
    ("llava", "hit_lmms_static"), ("lmms", "hit_lmms_static"), ("qwen", "hit_vlmevalkit_exact"),
])  # fmt: skip
def test_mmbench_circular(dialect, field):
    """One question's rotations: one group, a hit if all are right."""
    hits = []
    for golden in sets("mmbench_circular"):
        task = MMBenchEn(dialect=dialect)
        rows = scored(task, golden["items"], [item["prediction"] for item in golden["items"]])
        assert len(tallies(task, rows)) == 1
        found = task.figures(tallies(task, rows)[0])
        assert found["accuracy"] == found["accuracy/c"] == golden[field]
        assert found["vanilla"] == sum(row["score"]["correct"] for row in rows) / len(rows)
        hits.append(golden[field])
    assert set(hits) == {0, 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_hallusion_sets(dialect):
    """aAcc, qAcc, fAcc by comparison of strings."""
    for golden in sets("hallusion_sets"):
        task = TASKS["hallusion"](dialect=dialect)
        rows = scored(task, golden["items"], [item["model_prediction"] for item in golden["items"]])
        found = figures_of(task, rows)
        assert {name: found[name] for name in ("aAcc", "qAcc", "fAcc")} == pytest.approx(
            {name: golden[name] for name in ("aAcc", "qAcc", "fAcc")}
        )
