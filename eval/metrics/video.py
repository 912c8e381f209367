"""Multiple choice about videos: the letters that the scorers of these benchmarks read in an answer.

Sources: https://github.com/EvolvingLMMs-Lab/lmms-eval 0.7.3, tasks/{mvbench,longvideobench,egoschema}/utils.py;
https://github.com/open-compass/VLMEvalKit, vlmeval/dataset/utils/{videomme,longvideobench,mvbench,mlvu}.py. Where they
ask a judge or draw a letter, there is none here.
"""

import re
from collections.abc import Mapping, Sequence

from vtc.eval.metrics.choice import vlmevalkit_letter

_ANSWER = ("The best answer is", "The correct answer is", "The answer is", "The answer")
LMMS_PHRASES = (*_ANSWER, "The best option is", "The correct option is", "Best answer:", "Best option:")
VLMEVALKIT_PHRASES = (
    *_ANSWER, "The best option isThe correct option is", "Best answer:Best option:", "Answer:", "Option:",
)  # fmt: skip
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = re.compile(r"\d,\d")
_STOP = re.compile(r"\.(?!\d)")
_LISTED = re.compile(r"([A-E])\.\s*(.+)", re.IGNORECASE)
_ALONE = re.compile(r"\b([A-E])\b", re.IGNORECASE)


def first_letter(text: str, letters: Sequence[str], phrases: Sequence[str] = LMMS_PHRASES) -> str | None:
    """The first of these capitals anywhere in the text, words included, once the phrases are deleted; None without one.

    VLMEvalKit's list of phrases lacks two commas, so that `Best option: C` gives B there (of `Best`).
    """
    for phrase in phrases:
        text = text.replace(phrase, "")
    return next((character for character in text if character in letters), None)


def mvbench_lmms(text: str) -> str | None:
    """MVBench (https://arxiv.org/abs/2311.17005) in lmms-eval: the letter of `X. text`, else the first of A to E on its
    own, in any case (so the article in `it is a cat` is A), once punctuation is processed as in VQA; else None."""
    text = text.strip()
    if match := _LISTED.fullmatch(text):
        return match[1].upper()
    text = text.replace("\n", " ").replace("\t", " ")
    number, processed = _DIGITS.search(text) is not None, text
    for mark in _MARKS:
        spaced = f"{mark} " in text or f" {mark}" in text
        processed = processed.replace(mark, "" if spaced or number else " ")
    match = _ALONE.search(_STOP.sub("", processed, count=int(re.UNICODE)).strip("'").strip('"'))
    return match[1].upper() if match else None


def mvbench_vlmevalkit(text: str, options: Mapping[str, str]) -> str | None:
    """MVBench in VLMEvalKit: the letter whose `(x)` contains the answer's first word without full stops, or is a part
    of it, in any case; None unless that is exactly one. VLMEvalKit counts an answer as right that fits all letters
    alike, such as an empty one or `)`."""
    word = text.lower().split(" ")[0]
    forms = {letter: f"({letter.lower()})" for letter in options}
    fitting = [letter for letter, form in forms.items() if word.replace(".", "") in form or form in word]
    return fitting[0] if len(fitting) == 1 else None


def mlvu_vlmevalkit(text: str, options: Mapping[str, str]) -> list[str]:
    """MLVU (https://arxiv.org/abs/2406.04264) in VLMEvalKit: the letters that count as the answer, each where there is
    one: that before the first `)`, or the whole answer; and VLMEvalKit's letter without a judge."""
    before = text[: text.index(")")][-1:] if ")" in text else text
    letters = (before if before in options else None, vlmevalkit_letter(text, options))
    return list(dict.fromkeys(letter for letter in letters if letter))


def egoschema_lmms(text: str, options: Mapping[str, str]) -> str | None:
    """EgoSchema (https://arxiv.org/abs/2308.09126) in lmms-eval: of the letters as `(X)`, `X ` or `X.`, or in an answer
    of more than five words without these of the options as `X. text`, the one whose last occurrence comes first; None
    without one."""
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    forms = [(form.format(letter), letter) for form in ("({})", "{} ", "{}.") for letter in options]
    places = [(text.rfind(form), letter) for form, letter in forms if form in text]
    if not places and len(text.split()) > 5:
        lower = text.lower()
        whole = {letter: f"{letter}. {option}".lower() for letter, option in options.items()}
        places = [(lower.rfind(option), letter) for letter, option in whole.items() if option in lower]
    return min(places, key=lambda one: one[0])[1] if places else None
