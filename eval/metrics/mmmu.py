"""MMMU (https://arxiv.org/abs/2311.16502): the letter of a choice, and the candidates of an open answer.

Source: https://github.com/MMMU-Benchmark/MMMU, eval/eval_utils.py, as implemented in lmms-eval 0.7.3. Earlier versions
of lmms-eval compared open answers letter by letter, so their scores are wrong.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

_MARKS = ",.!?;:'"
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1e3
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 1.5
    )
)


def mmmu_choice(text: str, options: Mapping[str, str]) -> str | None:
    """The letter in an answer to a question with options (letter -> text), None if there is none.

    The text is stripped of each of `,.!?;:'` once and padded with spaces. Searched for are letters as `(X)`, else as
    `X `, else as `X.`, else, in an answer of more than five words, options by their text. If several are found, the one
    whose `(X)`, ` X ` or text occurs last wins, or the first one if none of these occurs. Where this gives None the
    official code guesses at random; we count the answer as wrong.
    """
    for mark in _MARKS:
        text = text.strip(mark)
    text = f" {text} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        letters = [letter for letter in options if form.format(letter) in text]
        if letters:
            return max(letters, key=lambda letter: text.rfind(place.format(letter)))
    lower = text.lower()
    letters = [letter for letter, option in options.items() if option.lower() in lower]
    if letters and len(text.split()) > 5:
        return max(letters, key=lambda letter: lower.rfind(options[letter].lower()))
    return None


def _normal(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the text in lower case; a single letter with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _tail(line: str, keys: Iterable[str]) -> str:
    """The shortest text after the last occurrence of one of the keys, "" if none occurs.

    An empty text is replaced by the next one.
    """
    shortest = ""
    for end in (line.rpartition(key)[2].strip() for key in keys if key in line):
        if not shortest or len(end) < len(shortest):
            shortest = end
    return shortest


def mmmu_open(text: str) -> list[str | float]:
    """Candidates in an answer to an open question: texts, and numbers rounded to two decimals, sorted as text.

    They are the part of each line after words such as `is ` or `answer `, in the last line also after `=`, or the whole
    answer if there is no such part, and all numbers in these texts.
    """
    text = text.strip().strip(".").lower()
    lines = text.split("\n")
    ends = [_tail(line, _KEYS) for line in lines[:-1]] + [_tail(lines[-1], (*_KEYS, "="))]
    endings = [end for end in ends if end and not (len(end) == 1 and end in _MARKS)] or [text]
    numbers = [number for end in endings for pattern in _NUMBERS for number in pattern.findall(end)]
    return sorted({candidate for part in (*endings, *numbers) for candidate in _normal(part)}, key=str)


def mmmu_open_score(pred: str, answer: str | Sequence[str]) -> float:
    """1 if a reference occurs in a text of `mmmu_open`, or is one of its numbers; else 0."""
    answers = [answer] if isinstance(answer, str) else answer
    refs = [ref for one in answers for ref in _normal(one)]
    texts = [ref for ref in refs if isinstance(ref, str)]
    return float(
        any(
            any(ref in candidate for ref in texts) if isinstance(candidate, str) else candidate in refs
            for candidate in mmmu_open(pred)
        )
    )
