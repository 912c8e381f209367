"""The generated video benchmark: disjoint splits of (clip, question, answer) and the base rates to compare with.

Sample i of a split is a pure function of (split, i): type `CLIP_TYPES[i % 5]`, a clip of its own. Where the answers are
few (color, direction, count) the answer is drawn before the clip. So any prefix is balanced over types to within one
sample and about balanced over answers. Tune on `tune`, publish figures on `test`.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
from PIL import Image

from vtc.demo.questions import Question
from vtc.demo.scenes import SPLITS
from vtc.demo.video.clip_questions import CLIP_ANSWERS, CLIP_TYPES, clip_candidates
from vtc.demo.video.clip_scenes import ClipScene, clip_scene, draw_frames

CLIPS_PER_SAMPLE = 128  # clips of a sample's own to look for the drawn answer in
FEW = 10  # answers that a type has at most for them to be drawn before the clip
FIRST = 1_000_000  # the clips of samples: none of them is among those that training draws
_SEED = 20483
CLIP_FINGERPRINT = "02e83b0373808782c7907c85483da95404d697fe58c03d3504a92ee06c46c639"


def _choose(split: str, index: int) -> tuple[ClipScene, Question]:
    """The clip and the question of one sample."""
    kind = CLIP_TYPES[index % len(CLIP_TYPES)]
    rng = np.random.default_rng([_SEED, SPLITS[split], index])
    answers = CLIP_ANSWERS[kind]
    answer = answers[int(rng.integers(len(answers)))] if len(answers) <= FEW else None
    first = FIRST + index * CLIPS_PER_SAMPLE
    chosen = None
    for number in range(first, first + CLIPS_PER_SAMPLE):
        clip = clip_scene(split, number)
        questions = clip_candidates(clip, kind)
        fitting = [question for question in questions if answer in (None, question.answer)]
        if fitting:
            return clip, fitting[int(rng.integers(len(fitting)))]
        if questions and chosen is None:
            chosen = clip, questions[int(rng.integers(len(questions)))]
    if chosen is None:
        raise RuntimeError(f"sample {index} of {split} has no {kind} question in {CLIPS_PER_SAMPLE} clips")
    return chosen


def clip_row(split: str, index: int) -> dict:
    """One sample without its pixels: `id`, `split`, `question`, `answer`, `type` (text), and `index`.

    Raises KeyError for an unknown split, ValueError for a negative index.
    """
    if index < 0:
        raise ValueError(f"sample index must be >= 0, got {index}")
    question = _choose(split, index)[1]
    names = {"question": question.text, "answer": question.answer, "type": question.type}
    return {"id": f"{split}-{index:05d}", "split": split, "index": index, **names}


def clip_frames(split: str, index: int) -> list[Image.Image]:
    """The pixels of one sample: 8 pictures, RGB, 112 x 112."""
    return [Image.fromarray(frame) for frame in draw_frames(_choose(split, index)[0])]


def clip_sample(split: str, index: int) -> dict:
    """One sample: `frames` as from `clip_frames` and what `clip_row` gives. Raises as that."""
    return {**clip_row(split, index), "frames": clip_frames(split, index)}


def clip_samples(split: str = "test", limit: int | None = None) -> Iterator[dict]:
    """The samples of a split in order, see `clip_sample`; endless when `limit` is None. Types alternate.

    Raises ValueError, at the call, for an unknown split or a negative limit.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be >= 0 or None, got {limit}")
    return islice((clip_sample(split, index) for index in count()), limit)


def clip_majority(split: str = "test", limit: int = 500) -> dict[str, float]:
    """Accuracy, 0 to 1, of always giving the commonest answer of each type among the first `limit` samples.

    Raises KeyError for an unknown split.
    """
    counts: dict[str, Counter] = defaultdict(Counter)
    for index in range(limit):
        question = _choose(split, index)[1]
        counts[question.type][question.answer] += 1
    return {kind: max(answers.values()) / sum(answers.values()) for kind, answers in counts.items()}


def clip_fingerprint(split: str = "test", limit: int = 10) -> str:
    """sha256 over pixels and text of the first samples; `CLIP_FINGERPRINT` is its value for the defaults."""
    digest = hashlib.sha256()
    for row in clip_samples(split, limit):
        for frame in row["frames"]:
            digest.update(frame.tobytes())
        digest.update("\n".join((row["id"], row["question"], row["answer"], row["type"])).encode())
    return digest.hexdigest()
