"""Short free answers: exact match, edit distance, relaxed numbers, containment."""

from collections.abc import Sequence

from vtc.eval.metrics.choice import find_letter, without_punctuation

_FULL_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: ord(" ")}


def gqa_llava(pred: str, answer: str) -> float:
    """GQA (https://arxiv.org/abs/1902.09506) as LLaVA scores it: equal, ignoring final full stops and case.

    Source: https://github.com/haotian-liu/LLaVA, scripts/convert_gqa_for_eval.py, and GQA's eval.py.
    """
    return float(pred.strip().rstrip(".").lower() == answer)


def gqa_lmms(pred: str, answer: str) -> float:
    """GQA as lmms-eval scores it: equal, ignoring case and punctuation. Articles and inner spaces count."""
    return float(without_punctuation(pred.strip()) == without_punctuation(answer))


def levenshtein(a: str, b: str, limit: int | None = None) -> int:
    """The least number of insertions, deletions and replacements that turn `a` into `b`; limit + 1 if above `limit`.

    Takes O(len(a) len(b)) time, or O(len(a) limit) comparisons with a limit, and two rows of memory.
    """
    if a == b:
        return 0
    if len(a) < len(b):
        a, b = b, a
    limit = len(a) if limit is None else min(limit, len(a))
    over = limit + 1
    longer = len(a) - len(b)
    if longer > limit:
        return over
    below, beyond = (limit + longer) // 2, (limit - longer) // 2  # how far a path may leave the diagonal
    above = [min(j, over) for j in range(len(b) + 1)]
    for i, letter in enumerate(a, 1):
        first, last = max(1, i - below), min(len(b), i + beyond)
        row = [over] * (len(b) + 1)
        row[0] = min(i, over)
        for j in range(first, last + 1):
            if letter == b[j - 1]:
                row[j] = above[j - 1]
            else:
                row[j] = min(1 + min(above[j - 1], above[j], row[j - 1]), over)
        if min(row[first - 1 : last + 1]) > limit:
            return over
        above = row
    return above[-1]


def anls(pred: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer to the nearest reference; below 0.5 it is 0.

    The similarity is 1 - distance / length. The distance is between the stripped, lower-cased texts with single spaces;
    the length is that of the longer of the stripped prediction and the unchanged reference (in upper case, where ß
    counts as two letters). Without references the result is 0. As in Qwen-VL's script and lmms-eval, exactly 0.5 is
    kept; DocVQA's definition (https://arxiv.org/abs/1905.13648, https://arxiv.org/abs/2007.00398) makes it 0.
    """
    pred = pred.strip()
    best, prediction = 0.0, " ".join(pred.lower().split())
    for answer in answers:
        length = max(len(answer.upper()), len(pred.upper()))
        half = length // 2  # with more edits the score is below 0.5
        distance = levenshtein(" ".join(answer.lower().split()), prediction, limit=half)
        if distance <= half:
            best = max(best, 1 - distance / length if length else 1.0)
    return best


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed_accuracy(pred: str, answer: str) -> float:
    """ChartQA's relaxed accuracy (https://arxiv.org/abs/2203.10244): numbers within 5 % of the reference.

    Both are parsed as Python floats, `5%` as 0.05. If one is not a number, or if the reference is 0, the texts must be
    equal except for case: `0.0` for 0, `1,000` for 1000 and `5%` for 5 are wrong. Source: Qwen-VL's evaluate_vqa.py and
    lmms-eval's tasks/chartqa/utils.py.
    """
    value, target = _number(pred), _number(answer)
    if value is None or not target:
        return float(pred.lower() == answer.lower())
    return float(abs(value - target) / abs(target) <= 0.05)


def ocrbench(pred: str, answers: str | Sequence[str], dataset: str) -> float:
    """OCRBench (https://arxiv.org/abs/2305.07895): whether the prediction contains one of the references.

    Case and full-width forms are ignored, and a line break counts as a space. For the formulas of `HME100k` case
    matters and spaces do not. Source: lmms-eval's tasks/ocrbench/utils.py; the benchmark's score is the sum over its
    1,000 questions.
    """

    def plain(text: str) -> str:
        if dataset == "HME100k":
            return text.strip().replace("\n", "").replace(" ", "")
        return text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ")

    prediction = plain(pred.strip())
    return float(any(plain(answer) in prediction for answer in ([answers] if isinstance(answers, str) else answers)))


def realworldqa(pred: str, answer: str) -> float:
    """RealWorldQA (https://x.ai/news/grok-1.5v) as lmms-eval scores it.

    A reference A to D is compared with the letter that `find_letter` finds; any other must be equal, ignoring case,
    outer spaces and final full stops.
    """
    answer = answer.strip()
    if answer.upper() in tuple("ABCD"):
        return float(find_letter(pred, "ABCD") == answer.upper())
    return float(pred.lower().strip().rstrip(".") == answer.lower())
