"""Benchmarks with free answers, and AI2D: from a row of the fixtures to the prompt, the score and the figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from vtc.core.errors import ConfigError
from vtc.eval.tasks import DIALECTS, TASKS

FIXTURES = Path(__file__).parent / "fixtures" / "tasks"
FILES = {"textvqa_ocr": "textvqa"}  # the fixture of a task, where it is not its name
SHORT = "\nAnswer the question using a single word or phrase."

# Prompts: for each task its row, then the text per dialect.
PROMPTS = {
    "gqa": (1, {
        "llava": "What color is the mug?\nAnswer the question using a single word or phrase.",
        "lmms": "What color is the mug?\nAnswer the question using a single word or phrase.",
        "qwen": "What color is the mug?\nPlease try to answer the question with short words or phrases if possible.",
    }),
    "vqav2": (1, {
        "llava": "How many plates are there?\nAnswer the question using a single word or phrase.",
        "lmms": "How many plates are there?\nAnswer the question using a single word or phrase.",
        "qwen": "How many plates are there?\n"
                "Please try to answer the question with short words or phrases if possible.",
    }),
    "textvqa": (1, {
        "llava": "What is the Brand of the camera?\nAnswer the question using a single word or phrase.",
        "lmms": "What is the brand of the camera?\nAnswer the question using a single word or phrase.",
        "qwen": "What is the Brand of the camera?\n"
                "Please try to answer the question with short words or phrases if possible.",
    }),
    "textvqa_ocr": (0, {
        "llava": "what does the sign say?\nReference OCR token: NO, PARKING\n"
                 "Answer the question using a single word or phrase.",
        "lmms": "What does the sign say?\nReference OCR token: NO, PARKING\n"
                "Answer the question using a single word or phrase.",
        "qwen": "what does the sign say?\nReference OCR token: NO, PARKING\n"
                "Please try to answer the question with short words or phrases if possible.",
    }),
    "vizwiz": (1, {
        "llava": "What color is this? Thank You.\n"
                 "When the provided information is insufficient, respond with 'Unanswerable'.\n"
                 "Answer the question using a single word or phrase.",
        "lmms": "What color is this? thank you.\n"
                "When the provided information is insufficient, respond with 'Unanswerable'.\n"
                "Answer the question using a single word or phrase.",
        "qwen": "What color is this? Thank You.\n"
                "Please try to answer the question with short words or phrases if possible.",
    }),
    "ocrbench": (1, {
        "llava": "Write the formula as LaTeX.",
        "lmms": "Write the formula as LaTeX.",
        "qwen": "Write the formula as LaTeX.\n"
                "Please try to answer the question with short words or phrases if possible.",
    }),
    "chartqa": (1, {
        "llava": "Which line is the highest?\nAnswer the question with a single word.",
        "lmms": "Which line is the highest?\nAnswer the question with a single word.",
        "qwen": "Which line is the highest?\n"
                "Please try to answer the question with short words or phrases if possible.",
    }),
    "docvqa": (1, {
        "llava": "What is the code?\nAnswer the question using a single word or phrase.",
        "lmms": "What is the code?\nAnswer the question using a single word or phrase.",
        "qwen": "What is the code?\nPlease try to answer the question with short words or phrases if possible.",
    }),
    "infovqa": (2, {
        "llava": "Which regions grow?\nAnswer the question using a single word or phrase.",
        "lmms": "Which regions grow?\nAnswer the question using a single word or phrase.",
        "qwen": "Which regions grow?\nPlease try to answer the question with short words or phrases if possible.",
    }),
    "ai2d": (1, {
        "llava": "Which label marks the root?\nA. T\nB. U\nC. W\n"
                 "Answer with the option's letter from the given choices directly.",
        "lmms": "Which label marks the root?\nA. T\nB. U\nC. W\n"
                "Answer with the option's letter from the given choices directly.",
        "qwen": "Question: Which label marks the root?\nOptions:\nA. T\nB. U\nC. W\n"
                "Please select the correct answer from the options above.",
    }),
}  # fmt: skip

# Answers to all rows of a fixture; scores of the rows and figures by hand, per dialect where they differ.
ANSWERS = {
    "gqa": ["Yes.", "red", "Closed", "tshirt"],
    "vqav2": ["Yes", "2", "clock", "dog"],
    "textvqa": ["No Parking", "canon", "12"],
    "textvqa_ocr": ["parking?", "Oriola.", "the bus"],
    "vizwiz": ["Soup.", "Unanswerable", "keyboard", "yes"],
    "ocrbench": ["The word is harbour.", "x^{2}+y", "total 12.50 dollars", "June"],
    "chartqa": ["14.7", "exports", "yes", "30", "0.05"],
    "docvqa": ["Mr Jones", "abxy", "1980"],
    "infovqa": ["26 %", "cats", "north"],
    "ai2d": ["B.", "c", "The answer is A."],
}
SCORES = {
    ("gqa", "llava"): [1, 0, 1, 0],
    ("gqa", None): [1, 0, 1, 1],
    ("vqav2", None): [1, 1, 0.9, 0.6],
    ("textvqa", None): [1, 0, 0.6],
    ("textvqa_ocr", None): [1, 1, 0],
    ("vizwiz", None): [0.9, 1, 1, 0],
    ("ocrbench", None): [1, 0, 1, 0],
    ("chartqa", None): [1, 1, 0, 0, 1],
    ("docvqa", None): [8 / 9, 0.5, 0],
    ("infovqa", None): [0.75, 1, 0],
    ("ai2d", "qwen"): [1, 0, 1],
    ("ai2d", None): [1, 1, 0],
}
FIGURES = {
    ("gqa", "llava"): {
        "accuracy": 0.5, "macro": 2 / 3, "accuracy/verify": 1, "accuracy/query": 0, "accuracy/choose": 1,
    },
    ("gqa", None): {
        "accuracy": 0.75, "macro": 2.5 / 3, "accuracy/verify": 1, "accuracy/query": 0.5, "accuracy/choose": 1,
    },
    ("vqav2", None): {
        "accuracy": 0.875, "server": 0.475, "macro": 2.75 / 3, "accuracy/yes/no": 1, "accuracy/number": 1,
        "accuracy/other": 0.75,
    },
    ("textvqa", None): {"accuracy": 1.6 / 3, "macro": 1.6 / 3, "accuracy/textvqa": 1.6 / 3},
    ("textvqa_ocr", None): {"accuracy": 2 / 3, "macro": 2 / 3, "accuracy/textvqa_ocr": 2 / 3},
    ("vizwiz", None): {"accuracy": 0.725, "macro": 0.725, "accuracy/answerable": 0.45, "accuracy/unanswerable": 1},
    ("ocrbench", None): {
        "accuracy": 0.5, "macro": 0.5, "accuracy/Regular Text Recognition": 1, "accuracy/Doc-oriented VQA": 0,
        "accuracy/Handwritten Mathematical Expression Recognition": 0, "accuracy/Key Information Extraction": 1,
    },
    ("chartqa", None): {"accuracy": 0.6, "macro": 3.5 / 6, "accuracy/human": 2 / 3, "accuracy/augmented": 0.5},
    ("docvqa", None): {"anls": (8 / 9 + 0.5) / 3},
    ("infovqa", None): {"anls": 1.75 / 3},
    ("ai2d", None): {"accuracy": 2 / 3, "macro": 2 / 3, "accuracy/ai2d": 2 / 3},
}  # fmt: skip
IDENTS = {
    "gqa": "20100001", "vqav2": "100001000", "textvqa": "30001", "textvqa_ocr": "30001",
    "vizwiz": "VizWiz_val_00000001", "ocrbench": "0", "chartqa": "0", "docvqa": "40001", "infovqa": "90001",
    "ai2d": "0",
}  # fmt: skip
EVERY = pytest.mark.parametrize("name, dialect", [(name, dialect) for name in PROMPTS for dialect in DIALECTS])


def opened(name: str, dialect: str = "llava"):
    """A task and the docs of its fixture."""
    task = TASKS[name](dialect)
    return task, task.open(place=str(FIXTURES / f"{FILES.get(name, name)}.jsonl"))


def expected(table: dict, name: str, dialect: str):
    """The entry of a table for a dialect, or the one for all that have none of their own."""
    return table.get((name, dialect)) or table[name, None]


def scored(name: str, dialect: str) -> tuple:
    """A task and its rows as a log has them, one group each."""
    task, docs = opened(name, dialect)
    assert len(docs) == len(ANSWERS[name])
    rows = []
    for i, text in enumerate(ANSWERS[name]):
        doc = docs.text(i)
        reference = json.loads(json.dumps(task.reference(doc), allow_nan=False))  # as it comes back from a log
        rows.append({"category": task.category(doc), "score": task.score(reference, text)})
    return task, rows


@EVERY
def test_prompt(name, dialect):
    """The text of the user's turn, letter by letter."""
    row, texts = PROMPTS[name]
    task, docs = opened(name, dialect)
    assert task.prompt(docs.text(row)) == texts[dialect]


@pytest.mark.parametrize("name", PROMPTS)
def test_rows(name):
    """One picture a row, ids that are unique and JSON, groups of one question, the table's name in the class."""
    task, docs = opened(name)
    assert task.name == name
    assert [[one.size for one in task.images(docs[i])] for i in range(len(docs))] == [[(32, 24)]] * len(docs)
    texts = [docs.text(i) for i in range(len(docs))]
    names = [task.ident(doc) for doc in texts]
    assert names[0] == IDENTS[name]
    assert len(set(names)) == len(names)
    assert [task.group(doc) for doc in texts] == names


@EVERY
def test_scores(name, dialect):
    """Scores of right, partly right and wrong answers; an empty answer is never right."""
    task, rows = scored(name, dialect)
    assert [row["score"]["correct"] for row in rows] == pytest.approx(expected(SCORES, name, dialect))
    reference = task.reference(opened(name, dialect)[1].text(0))
    assert task.score(reference, "")["correct"] == 0


@EVERY
def test_figures(name, dialect):
    """Figures over the fixture, and their value for arrays of replicates, which is that of each replicate."""
    task, rows = scored(name, dialect)
    tables = [task.tally([row]) for row in rows]
    keys = sorted({key for table in tables for key in table})
    sums = {key: sum(table.get(key, 0) for table in tables) for key in keys}
    found = task.figures(sums)
    assert found == pytest.approx(expected(FIGURES, name, dialect))
    assert task.primary in found
    assert task.figures(task.tally(rows)) == pytest.approx(found)
    assert task.figures({key: 2 * value for key, value in sums.items()}) == pytest.approx(found)  # each row twice
    weights = np.random.default_rng(0).integers(0, 3, (7, len(rows)))
    weights[0] = 1
    replicates = {key: weights @ np.array([table.get(key, 0.0) for table in tables]) for key in keys}
    arrays = task.figures(replicates)
    for r in range(len(weights)):
        alone = task.figures({key: value[r] for key, value in replicates.items()})
        assert {key: value[r] for key, value in arrays.items()} == pytest.approx(alone, nan_ok=True)
    assert {key: value[0] for key, value in arrays.items()} == pytest.approx(found)


def test_scale_of_ocrbench():
    """Half of the answers right are 500 points."""
    task, rows = scored("ocrbench", "llava")
    assert task.figures(task.tally(rows))[task.primary] * task.scale == 500


def test_server_score_of_vqav2():
    """The official script takes articles and capitals of references as they are, lmms-eval does not."""
    _, rows = scored("vqav2", "llava")
    assert [row["score"]["server"] for row in rows] == pytest.approx([1, 0.9, 0, 0])


def test_questions_without_ocr_tokens():
    """The line stays where nothing was read; a row without the column is an error that names the other task."""
    task, docs = opened("textvqa_ocr")
    nothing = "What is the Brand of the camera?\nReference OCR token: " + SHORT
    assert task.prompt(docs.text(1)) == task.prompt(docs.text(1) | {"ocr_tokens": None}) == nothing
    with pytest.raises(ConfigError, match="needs a column 'ocr_tokens'; possible: task 'textvqa'$"):
        task.prompt({"question": "what?"})


@pytest.mark.parametrize("doc, kind", [
    ({"category": "number"}, "answerable"),
    ({"answer_type": "unanswerable", "answers": ["cat"] * 10}, "unanswerable"),
    ({"category": "", "answers": [{"answer": "Unsuitable"}] * 6 + [{"answer": "cat"}] * 4}, "unanswerable"),
    ({"category": "anything", "answers": ["cat"] * 5 + ["unanswerable"] * 4 + ["dog"]}, "answerable"),
    ({"answers": None}, "vizwiz"),
])  # fmt: skip
def test_kinds_of_vizwiz(doc, kind):
    """The kind comes from the column of the hub or of the official file, else from the commonest answer."""
    assert TASKS["vizwiz"]().category(doc) == kind


@pytest.mark.parametrize("text, parsed", [("b", "B"), ("(B)", "B"), ("B. rabbit", "B"), ("rabbit", None), ("Z", None)])
def test_letter_of_ai2d(text, parsed):
    """lmms-eval's filter reads a letter with punctuation, or at the beginning before a full stop; no option's text."""
    task, docs = opened("ai2d")
    score = task.score(task.reference(docs.text(0)), text)
    assert score == {"correct": float(parsed == "B"), "parsed": parsed}


def test_letter_of_ai2d_qwen():
    """VLMEvalKit's matching also finds the text of the option, and counts a refusal as nothing understood."""
    task, docs = opened("ai2d", "qwen")
    reference = task.reference(docs.text(0))
    assert task.score(reference, "It is the rabbit.") == {"correct": 1.0, "parsed": "B"}
    assert task.score(reference, "Sorry, I can't help with that.")["parsed"] is None
