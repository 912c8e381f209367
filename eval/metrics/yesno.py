"""Yes-or-no questions: reading the answer in each dialect, and the figures of a detection task."""

import re

import numpy as np

from vtc.eval.metrics.vqa import replace_punctuation

Number = float | np.ndarray

_COMMA = re.compile(r"\d,\d")
_LONE_STOP = re.compile(r"(?<!\d)\.(?!\d)")


def pope_llava(text: str) -> str:
    """What LLaVA reads in an answer to POPE (https://arxiv.org/abs/2305.10355): "yes" or "no".

    The text up to its first full stop, without commas, is split at single spaces: "no" if one of the words is `No`,
    `no` or `not`, else "yes". So `NO`, `Nope`, `No` before a line break and the empty answer are read as "yes".
    Source: https://github.com/haotian-liu/LLaVA, llava/eval/eval_pope.py.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def pope_lmms(text: str) -> str | None:
    """What lmms-eval reads in an answer to POPE: "yes" or "no" if the answer is just that word, else None (`yes.`).

    Source: https://github.com/EvolvingLMMs-Lab/lmms-eval, tasks/pope/utils.py.
    """
    word = text.lower().strip()
    return word if word in ("yes", "no") else None


def pope_vlmevalkit(text: str) -> str | None:
    """What VLMEvalKit reads in an answer to POPE: "yes" or "no" if that is among the words, None for neither or both.

    The text is lower-cased and punctuation handled as in VQA v2, except that a full stop after a digit is kept and only
    a single comma counts as a comma between digits.
    Source: https://github.com/open-compass/VLMEvalKit, vlmeval/dataset/utils/yorn.py.
    """
    words = replace_punctuation(text.lower(), _COMMA, _LONE_STOP).split()
    answers = [word for word in ("yes", "no") if word in words]
    return answers[0] if len(answers) == 1 else None


def mme(text: str) -> str:
    """What an answer to MME (https://arxiv.org/abs/2306.13394) says: "yes", "no", or "other", which is wrong.

    The text is lower-cased, stripped and freed of full stops. It must be the letter y or n, or its first four letters
    must contain `yes`, or else `no` (so `know` is "no"). This is the rule of lmms-eval's tasks/mme/utils.py; the
    official tool does not accept y and n.
    """
    start = text.lower().strip().replace(".", "")[:4]
    if len(start) == 1:
        return {"y": "yes", "n": "no"}.get(start, "other")
    return next((word for word in ("yes", "no") if word in start), "other")


def hallusion(text: str) -> str:
    """What an answer to HallusionBench (https://arxiv.org/abs/2310.14566) says: "yes" if it contains `yes`, else "no".

    Case is ignored. This is the rule without a judge, as in lmms-eval's tasks/hallusion_bench; in the paper GPT-4
    compares the answers.
    """
    return "yes" if "yes" in text.lower() else "no"


def _ratio(part: Number, whole: Number) -> Number:
    whole = np.asarray(whole, dtype=float)
    value = part / np.where(whole == 0, np.nan, whole)
    return value if value.ndim else float(value)


def detection(tp: Number, fp: Number, fn: Number, tn: Number, other: Number = 0.0) -> dict[str, Number]:
    """accuracy, precision, recall, f1 and yes_ratio (of the answers, not of the labels); yes is the positive class.

    Counts are numbers, or arrays of the same shape for elementwise figures; a ratio with denominator 0 is nan, and f1
    is 2 precision recall / (precision + recall).

    other: answers that are neither yes nor no and are in none of the four counts. They are wrong, so the denominators
    of accuracy and yes_ratio include them. LLaVA has none: it reads such an answer as yes. lmms-eval leaves them out of
    precision and recall: all of them are `other`. VLMEvalKit treats them as no in precision and recall: those whose
    label is yes are in `fn`, the rest are `other`. Where this gives nan, lmms-eval and VLMEvalKit print 0, and LLaVA's
    script crashes; lmms-eval's own yes ratio is computed from the labels and is always about 0.5.
    """
    n = tp + fp + fn + tn + other
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return {
        "accuracy": _ratio(tp + tn, n),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": _ratio(tp + fp, n),
    }
