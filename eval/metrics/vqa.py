"""Soft accuracy of VQA v2, TextVQA and VizWiz: agreement with ten annotators, on normalised answers."""

import re
from collections.abc import Sequence
from functools import lru_cache

from vtc.eval.metrics.contractions import CONTRACTIONS

MARKS = ';/[]"{}()=+\\_-><@`,?!'
COMMA = re.compile(r"(?<=\d),+(?=\d)")
STOP = re.compile(r"\.(?!\d)")  # the published pattern is meant to keep a stop after a digit, but does not
MOST_STOPS = 32  # the published call passes re.UNICODE, which is 32, as the count
NUMBERS = dict(
    none="0", zero="0", one="1", two="2", three="3", four="4", five="5", six="6", seven="7", eight="8", nine="9",
    ten="10",
)  # fmt: skip
ARTICLES = ("a", "an", "the")
CACHED = 1 << 16


def replace_punctuation(text: str, comma: re.Pattern = COMMA, stop: re.Pattern = STOP) -> str:
    """The text without punctuation, as VQA v2's script removes it.

    Each of `MARKS` is replaced by a space, or deleted if it is next to a space anywhere in the text or if the text
    matches `comma`. Then the first 32 matches of `stop` are deleted.
    """
    gone = comma.search(text) is not None
    table = {
        ord(mark): "" if gone or f"{mark} " in text or f" {mark}" in text else " " for mark in MARKS if mark in text
    }
    return stop.sub("", text.translate(table) if table else text, count=MOST_STOPS)


@lru_cache(CACHED)
def normalize(text: str) -> str:
    """An answer as VQA v2 compares it: lower case without punctuation and articles, `two` as 2, `dont` as don't.

    White space is normalised and `replace_punctuation` applied; then, word by word, numbers up to ten become digits
    (`none` becomes 0), articles are dropped and contractions spelled out. Source:
    https://github.com/GT-Vision-Lab/VQA, vqaEval.py, as implemented in lmms-eval's vqa_eval_metric.py, whose pattern
    matches several commas between digits.
    """
    flat = replace_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in flat.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(CACHED)
def normalize_evalai(text: str) -> str:
    """An answer as TextVQA and VizWiz compare it: commas and question marks deleted, `'s` split off, then `normalize`.

    Source: https://github.com/facebookresearch/mmf, pythia's EvalAIAnswerProcessor; LLaVA's m4c_evaluator.py agrees.
    """
    return normalize(text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def soft_accuracy(pred: str, refs: Sequence[str]) -> float:
    """Mean over the references of min(1, matches among the others / 3); texts are compared verbatim.

    With k of n references equal to the prediction: (k min(1, (k-1)/3) + (n-k) min(1, k/3)) / n; for n = 10 and
    k = 0, 1, 2, 3, 4 that is 0, .3, .6, .9, 1. It is 0 without references. Source: https://arxiv.org/abs/1505.00468.
    """
    n, k = len(refs), sum(ref == pred for ref in refs)
    if k == 0:
        return 0.0
    return (k * min(1, (k - 1) / 3) + (n - k) * min(1, k / 3)) / n


def vqa_accuracy(pred: str, answers: Sequence[str]) -> float:
    """VQA v2 (https://arxiv.org/abs/1612.00837) as lmms-eval scores it: all texts are normalised."""
    return soft_accuracy(normalize(pred), [normalize(answer) for answer in answers])


def vqa_accuracy_server(pred: str, answers: Sequence[str]) -> float:
    """VQA v2 as the script of its evaluation server scores it.

    References lose only their punctuation, and only if they are not all equal: a reference with an article, a capital
    letter or a spelled-out number can never be matched.
    """
    refs = answers if len(set(answers)) <= 1 else [replace_punctuation(answer) for answer in answers]
    return soft_accuracy(normalize(pred), refs)


def textvqa_accuracy(pred: str, answers: Sequence[str]) -> float:
    """TextVQA (https://arxiv.org/abs/1904.08920) and VizWiz (https://arxiv.org/abs/1802.08218), LLaVA and lmms-eval."""
    return soft_accuracy(normalize_evalai(pred), [normalize_evalai(answer) for answer in answers])
