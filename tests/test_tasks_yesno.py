"""POPE, MME and HallusionBench: from rows of the hub's form to prompts, scores and figures."""

import json
import math

import pytest

from tests.helpers_tasks import FIXTURES, docs_of, figures_of, opened, scored
from vtc.core.errors import ConfigError
from vtc.eval.tasks import DIALECTS, TASKS

SHORT = "\nAnswer the question using a single word or phrase."
PROMPTS = {
    "pope": {
        "llava": "Is there an oven in the image?" + SHORT,
        "lmms": "Is there an oven in the image?\nAnswer the question using a single word or phrase.",
        "qwen": "Is there an oven in the image? Please answer yes or no.",
    },
    "mme": {
        "llava": "Is there a horse in this image?" + SHORT,
        "lmms": "Is there a horse in this image?\nAnswer the question using a single word or phrase.",
        "qwen": "Is there a horse in this image? Please answer yes or no.",
    },
    "hallusion": {
        "llava": "Are the two lines equal?",
        "lmms": "Are the two lines equal?",
        "qwen": "Are the two lines equal? Please answer yes or no.",
    },
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_prompt_pictures_names(name, dialect):
    """The second row's prompt letter by letter; one picture of the right size; names of their own."""
    task, docs = opened(name, dialect)
    assert task.prompt(docs.text(1)) == PROMPTS[name][dialect]
    assert [image.size for i in range(len(docs)) for image in task.images(docs[i])] == [(32, 24)] * len(docs)
    assert len({task.ident(doc) for doc in docs_of(docs)}) == len(docs)


@pytest.mark.parametrize("name", PROMPTS)
def test_limits_cut_no_group(name):
    """Every limit gives whole groups, and at least one."""
    _, whole = opened(name)
    sizes = {}
    for limit in range(1, len(whole) + 1):
        task, docs = opened(name, limit=limit)
        groups = [task.group(doc) for doc in docs_of(docs)]
        for group in set(groups):
            sizes[group] = [task.group(doc) for doc in docs_of(whole)].count(group)
            assert groups.count(group) == sizes[group]
        assert len(groups) <= limit or len(set(groups)) == 1
    assert max(sizes.values()) == {"pope": 1, "mme": 2, "hallusion": 4}[name]


def test_pope_names_and_labels():
    """The number counts within a category; the label may stand in `label`; anything but yes and no is refused."""
    task, docs = opened("pope")
    assert [task.ident(doc) for doc in docs_of(docs)][:3] == ["adversarial/1", "adversarial/2", "popular/1"]
    assert [task.reference(doc) for doc in docs_of(docs)] == ["yes", "no", "yes", "no", "yes", "no", "yes"]
    assert task.reference({"question_id": 7, "category": "random", "label": "No"}) == "no"
    with pytest.raises(ConfigError, match="random/7.*None.*possible: yes, no"):
        task.reference({"question_id": 7, "category": "random", "answer": None})


# What each dialect reads in an answer.
POPE_READ = [
    ("Yes", "yes", "yes", "yes"),
    ("no", "no", "no", "no"),
    ("No, there is none", "no", None, "no"),
    ("NO", "yes", "no", "no"),
    ("yes.", "yes", None, "yes"),
    ("", "yes", None, None),
    ("There is not.", "no", None, None),
    ("no or yes", "no", None, None),
]


@pytest.mark.parametrize("text, llava, lmms, qwen", POPE_READ)
def test_pope_reads(text, llava, lmms, qwen):
    """Right is what is read and is the label; what cannot be read is wrong for either label."""
    for dialect, said in (("llava", llava), ("lmms", lmms), ("qwen", qwen)):
        for label in ("yes", "no"):
            score = TASKS["pope"](dialect=dialect).score(label, text)
            assert score == {"correct": float(said == label), "parsed": said, "label": label}


# Labels of the fixture: adversarial yes no, popular yes no, random yes no yes.
POPE_TEXTS = ["yes", "yes", "no", "no", "yes", "no", "maybe"]


def test_pope_figures_llava():
    """maybe is yes: adversarial tp fp, popular fn tn (no yes at all: F1 0), random tp tn tp."""
    task, docs = opened("pope")
    found = figures_of(task, scored(task, docs_of(docs), POPE_TEXTS))
    assert found["f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["f1_pooled"] == pytest.approx(3 / 4)  # tp 3, fp 1, fn 1, tn 2
    assert (found["accuracy"], found["precision"], found["recall"]) == pytest.approx((5 / 7, 3 / 4, 3 / 4))
    assert (found["yes_ratio"], found["yes_labels"]) == pytest.approx((4 / 7, 4 / 7))
    popular = {name: found[f"{name}/popular"] for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}
    assert popular == {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}
    assert task.primary == "f1"
    assert task.scale == 100


@pytest.mark.parametrize("dialect, recall, pooled", [("lmms", 2 / 3, 2 / 3), ("qwen", 2 / 4, 4 / 7)])
def test_pope_figures_with_an_unread_answer(dialect, recall, pooled):
    """maybe to a question with the answer yes: out of recall in lmms-eval, a miss in VLMEvalKit; wrong in both."""
    task, docs = opened("pope", dialect)
    found = figures_of(task, scored(task, docs_of(docs), POPE_TEXTS))
    assert (found["accuracy"], found["precision"], found["recall"]) == pytest.approx((4 / 7, 2 / 3, recall))
    assert (found["f1_pooled"], found["yes_ratio"], found["yes_labels"]) == pytest.approx((pooled, 3 / 7, 4 / 7))
    random = 1.0 if dialect == "lmms" else 2 / 3
    assert found["f1/random"] == pytest.approx(random)
    assert found["f1"] == pytest.approx((2 / 3 + 0 + random) / 3)


def test_pope_split_of_a_category(tmp_path):
    """The hub's three splits are in a folder of their own config."""
    (tmp_path / "Full").mkdir()
    rows = [json.loads(line) for line in (FIXTURES / "pope.jsonl").read_text(encoding="utf-8").splitlines()]
    for split in ("adversarial", "popular", "random"):
        text = "".join(json.dumps(row) + "\n" for row in rows if row["category"] == split)
        (tmp_path / "Full" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    docs = TASKS["pope"]().open("random", place=str(tmp_path))
    assert [doc["category"] for doc in docs_of(docs)] == ["random"] * 3
    assert docs.record["config"] == "Full"


def test_mme_figures():
    """existence: both right, 200; color: one of two, 50; code_reasoning: none, 0."""
    task, docs = opened("mme")
    assert [task.group(doc) for doc in docs_of(docs)][::2] == [
        "existence/0007.png", "color/0003.png", "code_reasoning/0001.png",
    ]  # fmt: skip
    assert task.ident(docs.text(0)) == "existence/0007.png Is there a lamp in this image?"
    rows = scored(task, docs_of(docs), ["Yes", "no, none", "Y", "Yes.", "Yes", "It does not"])
    assert [row["score"]["parsed"] for row in rows] == ["yes", "no", "yes", "yes", "yes", None]
    found = figures_of(task, rows)
    assert found == {
        "perception": 250.0, "cognition": 0.0, "total": 250.0,
        "accuracy/existence": 200.0, "accuracy/color": 50.0, "accuracy/code_reasoning": 0.0,
    }  # fmt: skip
    assert (task.primary, task.scale) == ("perception", 1.0)


def test_mme_lone_answers_and_absent_kinds():
    """A picture with one of its questions answered is not both right; without cognition its sum is unknown."""
    task, docs = opened("mme", "qwen")
    rows = scored(task, docs_of(docs)[:3], ["yes", "no", "yes"])
    found = figures_of(task, rows)
    assert found["accuracy/color"] == 100.0
    assert found["perception"] == found["total"] == 300.0
    assert math.isnan(found["cognition"])
    assert task.group({"category": "scene", "question_id": "0001.png"}) == "scene/0001.png"


def test_hallusion_figures():
    """In the first set one of four answers is wrong: one question and one figure fail; in the other all are right."""
    task, docs = opened("hallusion")
    assert [task.ident(doc) for doc in docs_of(docs)][:2] == ["VD/illusion/0/0/0", "VD/illusion/0/0/1"]
    rows = scored(task, docs_of(docs), ["Yes, it is", "no", "YES", "It says yes", "yes", "There was a dip"])
    assert [row["score"]["correct"] for row in rows] == [1, 1, 0, 1, 1, 1]
    found = figures_of(task, rows)
    assert found["aAcc"] == pytest.approx(5 / 6)
    assert found["qAcc"] == pytest.approx(2 / 3)  # of three questions: 0 and 1 of the first set, 0 of the second
    assert found["fAcc"] == pytest.approx(3 / 4)  # of four figures
    assert (found["accuracy/VD"], found["accuracy/VS"]) == (3 / 4, 1)


def test_references_do_not_depend_on_the_dialect():
    """Saved answers can be scored again in another dialect."""
    for name in PROMPTS:
        references = [[opened(name, d)[0].reference(doc) for doc in docs_of(opened(name)[1])] for d in DIALECTS]
        assert references[0] == references[1] == references[2]
