"""The generated benchmark: three disjoint splits of (image, question, answer) and the base rates to compare with.

Sample i of a split is a pure function of (split, i): type `TYPES[i % 7]`, a scene of its own, an answer drawn before
the scene. So any prefix is balanced over types to within one sample and about balanced over answers. Tune on `tune`,
publish figures on `test`.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
from PIL import Image

from vtc.demo.questions import ANSWERS, TYPES, Question, candidates
from vtc.demo.scenes import SPLITS, Scene, draw, scene

SCENES_PER_SAMPLE = 24  # scenes of a sample's own to look for the drawn answer in
_SEED = 20481  # first word of the seeds of the questions; scenes use another
FINGERPRINT = "e5c8fb0154e7347dc9c7b0cbf9993a4b46c12b1b2aef0b92c1568ef2e86fa4b9"


def _choose(split: str, index: int) -> tuple[Scene, Question]:
    """The scene and the question of one sample."""
    kind = TYPES[index % len(TYPES)]
    rng = np.random.default_rng([_SEED, SPLITS[split], index])
    answer = ANSWERS[kind][int(rng.integers(len(ANSWERS[kind])))]
    first = index * SCENES_PER_SAMPLE
    chosen = None
    for number in range(first, first + SCENES_PER_SAMPLE):
        layout = scene(split, number)
        questions = candidates(layout, kind)
        fitting = [question for question in questions if question.answer == answer]
        if fitting:
            return layout, fitting[int(rng.integers(len(fitting)))]
        if questions and chosen is None:
            chosen = layout, questions[int(rng.integers(len(questions)))]
    if chosen is None:
        raise RuntimeError(f"sample {index} of {split} has no {kind} question in {SCENES_PER_SAMPLE} scenes")
    return chosen


def sample(split: str, index: int) -> dict:
    """One sample: `id` (text), `image` (PIL, RGB, 112 x 112 pixels), `question`, `answer` and `type` (text).

    Raises KeyError for an unknown split, ValueError for a negative index.
    """
    layout, question = _choose(split, index)
    return {
        "id": f"{split}-{index:05d}",
        "image": Image.fromarray(draw(layout)),
        "question": question.text,
        "answer": question.answer,
        "type": question.type,
    }


def samples(split: str = "test", limit: int | None = None) -> Iterator[dict]:
    """The samples of a split in order, see `sample`; endless when `limit` is None. Types alternate.

    Raises ValueError, at the call, for an unknown split or a negative limit.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be >= 0 or None, got {limit}")
    return islice((sample(split, index) for index in count()), limit)


def is_correct(answer: str, prediction: str) -> bool:
    """Exact match after trimming, lower-casing and dropping a final full stop."""
    return prediction.strip().lower().removesuffix(".") == answer


def majority(split: str = "test", limit: int = 700) -> dict[str, float]:
    """Accuracy, 0 to 1, of always giving the commonest answer of each type among the first `limit` samples.

    Only layouts are generated, no pixels. Raises KeyError for an unknown split.
    """
    counts: dict[str, Counter] = defaultdict(Counter)
    for index in range(limit):
        question = _choose(split, index)[1]
        counts[question.type][question.answer] += 1
    return {kind: max(answers.values()) / sum(answers.values()) for kind, answers in counts.items()}


def fingerprint(split: str = "test", limit: int = 14) -> str:
    """sha256 over the pixels and the text of the first samples; `FINGERPRINT` is its value for the defaults."""
    digest = hashlib.sha256()
    for row in samples(split, limit):
        digest.update(row["image"].tobytes())
        digest.update("\n".join((row["id"], row["question"], row["answer"], row["type"])).encode())
    return digest.hexdigest()
