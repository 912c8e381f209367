"""Questions with the answer yes or no: reading the answer in each dialect, and the figures of a detection task."""

import re

import numpy as np

from vtc.eval.metrics.vqa import replace_punctuation

Number = float | np.ndarray

_COMMA = re.compile(r"\d,\d")
_LONE_STOP = re.compile(r"(?<!\d)\.(?!\d)")


def pope_llava(text: str) -> str:
    """What LLaVA reads in an answer to POPE (https://arxiv.org/abs/2305.10355): "yes" or "no".

    The text up to its first full stop, without commas, cut at single spaces: "no" if one of the words is `No`, `no` or
    `not`, else "yes". So `NO`, `Nope`, `No` before a line break and the empty answer are "yes".
    Source: https://github.com/haotian-liu/LLaVA, llava/eval/eval_pope.py.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def pope_lmms(text: str) -> str | None:
    """What lmms-eval reads in an answer to POPE: "yes" or "no" if that is all of it, case ignored, else None (`yes.`).

    Source: https://github.com/EvolvingLMMs-Lab/lmms-eval, tasks/pope/utils.py.
    """
    word = text.lower().strip()
    return word if word in ("yes", "no") else None


def pope_vlmevalkit(text: str) -> str | None:
    """What VLMEvalKit reads in an answer to POPE: "yes" or "no" as it is among the words, None for neither or both.

    Lower case, punctuation as in VQA v2 except that a full stop after a digit stays and a comma counts as between
    digits only if it is alone. Source: https://github.com/open-compass/VLMEvalKit, vlmeval/dataset/utils/yorn.py.
    """
    words = replace_punctuation(text.lower(), _COMMA, _LONE_STOP).split()
    answers = [word for word in ("yes", "no") if word in words]
    return answers[0] if len(answers) == 1 else None


def mme(text: str) -> str:
    """What an answer to MME (https://arxiv.org/abs/2306.13394) says: "yes", "no", or "other", which is wrong.

    Lower case, trimmed, no full stops. A single letter is y or n; else the first four letters hold `yes`, or else
    `no` (so `know` is "no"). The rule of lmms-eval's tasks/mme/utils.py; the official tool knows no y and n.
    """
    start = text.lower().strip().replace(".", "")[:4]
    if len(start) == 1:
        return {"y": "yes", "n": "no"}.get(start, "other")
    return next((word for word in ("yes", "no") if word in start), "other")


def hallusion(text: str) -> str:
    """What an answer to HallusionBench (https://arxiv.org/abs/2310.14566) says: "yes" if it holds `yes` in any case.

    Else "no". The form without a judge, of lmms-eval's tasks/hallusion_bench; in the paper GPT-4 compares the answers.
    """
    return "yes" if "yes" in text.lower() else "no"


def _ratio(part: Number, whole: Number) -> Number:
    whole = np.asarray(whole, dtype=float)
    value = part / np.where(whole == 0, np.nan, whole)
    return value if value.ndim else float(value)


def detection(tp: Number, fp: Number, fn: Number, tn: Number, other: Number = 0.0) -> dict[str, Number]:
    """accuracy, precision, recall, f1 and yes_ratio (of the answers, not of the labels), with yes as the positive.

    Counts are numbers, or arrays of one shape for figures elementwise; a ratio with denominator 0 is nan, and f1 is
    2 precision recall / (precision + recall).

    other: answers that are neither yes nor no and stand in none of the four counts; they are wrong, so accuracy and
    yes_ratio have them in the denominator. LLaVA has none: it reads such an answer as yes. lmms-eval leaves them out of
    precision and recall: all of them are `other`. VLMEvalKit takes them for no in precision and recall: those to
    questions with the answer yes are in `fn`, the rest are `other`. Where this gives nan, lmms-eval and VLMEvalKit
    print 0, and LLaVA's script stops; lmms-eval's own yes ratio counts the labels and is always about 0.5.
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
