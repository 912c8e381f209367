"""Multiple choice: finding the letter in an answer as each benchmark's scorer does, and scoring it."""

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

FAILED = "Failed to obtain answer via API"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
REFUSED = "Z"

_RANKED = ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "))
_NAMED = tuple(
    f"{kind} is"
    for kind in ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
)
_PHRASES = (
    *_NAMED, *(f"the {phrase}" for phrase in _NAMED), "my answer is", "my choice is", "i choose", "i select", "i pick",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
_TOKENS = ("{}", "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
_SPACED = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_DECLARED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_LEADING = re.compile(r"\s*([A-Z])\.")
_SCIENCEQA = re.compile(r"The answer is ([A-Z]).")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_punctuation(text: str) -> str:
    """The text in lower case without the characters of `string.punctuation`, as lmms-eval's exact_match compares it."""
    return text.lower().translate(_PUNCTUATION)


def find_letter(text: str, letters: Sequence[str] = "ABCDEFGH") -> str:
    """The letter that lmms-eval's letter finder takes as the answer, "" if there is none.

    The text is stripped of spaces, then of each of `,.!?;:'"` once. Letters are ranked by how they occur: on their own
    at the start 10, at the end 9, after words such as `answer is` 7, `(X)` 6, `X.` 5, `X:` 4, `X)` 3, `X ` 2, and
    anywhere 0 if none of these is found; the highest rank wins, then the last position. Matching is case-sensitive: `b`
    is not found, and `Cat` gives C. Source: https://github.com/EvolvingLMMs-Lab/lmms-eval 0.7.3,
    tasks/_task_utils/mcq_extract.py; a later version gives up more often.
    """
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    lower = text.lower()
    behind = [lower.find(phrase) + len(phrase) for phrase in _PHRASES if phrase in lower]
    candidates = []
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            candidates.append((10, 0, letter))
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            candidates.append((9, 0, letter))
        candidates += [(7, text.find(letter, start), letter) for start in behind if letter in text[start:]]
        for rank, form in _RANKED:
            if (form := form.format(letter)) in text:
                candidates.append((rank, text.rfind(form), letter))
    if not candidates:
        candidates = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(candidates)[2] if candidates else ""


def _named_option(text: str, options: Mapping[str, object]) -> str | None:
    """The letter of the only option whose text occurs in the answer, ignoring case; None unless exactly one does."""
    letters = [letter for letter, option in options.items() if str(option).lower() in text.lower()]
    return letters[0] if len(letters) == 1 else None


def mmbench_prefetch(text: str, options: Mapping[str, object]) -> str | None:
    """The letter that MMBench's rules find before a judge is asked, None if they find none.

    Among the words of the answer: exactly one of A to E on its own (but not A among more than three words, as it may be
    an article), else exactly one as `X.`, as `X,` and so on; else the only option (letter -> text) whose text occurs
    in the answer. Source: https://arxiv.org/abs/2307.06281, lmms-eval's tasks/mmbench/mmbench_evals.py.
    """
    words = text.split()
    if FAILED not in text:
        for form in _TOKENS:
            letters = [letter for letter in "ABCDE" if form.format(letter) in words]
            if len(letters) == 1 and not (form == "{}" and letters == ["A"] and len(words) > 3):
                return letters[0]
    return _named_option(text, options)


def mmbench_letter(text: str, options: Mapping[str, object]) -> str | None:
    """MMBench's letter without a judge, None if there is none: `mmbench_prefetch`, else `find_letter`.

    This is the rule of lmms-eval's mmbench_en_dev_static.
    """
    return mmbench_prefetch(text, options) or find_letter(text, sorted(options)) or None


def vlmevalkit_letter(text: str, options: Mapping[str, object]) -> str | None:
    """The letter that VLMEvalKit's exact matching finds, "Z" for a refusal, None if it finds none (counted wrong).

    Among the words of the answer, with `.()[],:;!*#{}` replaced by spaces: the only letter of an option (letter ->
    text), if its first occurrence is among the last four words; "Z" if that is the only letter; else A to D in
    `answer is X`; else the only option whose text occurs in the answer, unless the answer is more than twice as long
    as all options together.
    Source: https://github.com/open-compass/VLMEvalKit, vlmeval/utils/matching_util.py.
    """
    if FAILED not in text:
        if any(refusal in text for refusal in REFUSALS):
            return REFUSED
        words = text.translate(_SPACED).split()
        letters = [letter for letter in options if letter in words]
        if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
            return letters[0]
        if not letters and REFUSED in words:
            return REFUSED
        declared = _DECLARED.search(text)
        if declared and declared[1].upper() in options:
            return declared[1].upper()
    if len(text.lower()) > 2 * sum(len(str(option)) for option in options.values()):
        return None
    return _named_option(text, options)


def circular_hit(items: Iterable[Mapping], letter: Callable[[str, Mapping[str, object]], str | None]) -> float:
    """1 if all rotations of a question are answered correctly, else 0: MMBench's CircularEval.

    items: each with `prediction`, `answer` (a letter) and the options `A`, `B`, ... (None: no such option).
    letter: `mmbench_letter` or `vlmevalkit_letter`.
    """

    def right(item: Mapping) -> bool:
        options = {name: item[name] for name in string.ascii_uppercase if item.get(name) is not None}
        return letter(item["prediction"], options) == item["answer"]

    return float(all(right(item) for item in items))


def seed_letter(text: str) -> str:
    """First character of the stripped answer: SEED-Bench (https://arxiv.org/abs/2307.16125), LLaVA and lmms-eval."""
    return text.strip()[:1]


def seed(pred: str, answer: str) -> float:
    """SEED-Bench: whether `seed_letter` is the answer, ignoring case."""
    return float(seed_letter(pred).lower() == answer.strip().lower())


def ai2d_answer(text: str) -> str:
    """The letter if the answer begins with one and a full stop, else the answer: lmms-eval's filter for AI2D."""
    match = _LEADING.match(text)
    return match[1] if match else text


def ai2d(pred: str, answer: str) -> float:
    """AI2D (https://arxiv.org/abs/1603.07396) as lmms-eval scores it: `ai2d_answer` equals the letter.

    Case and punctuation are ignored: `(b)` is right for B, `B) text` is not.
    """
    return float(without_punctuation(ai2d_answer(pred).strip()) == without_punctuation(answer))


def mmstar(pred: str, answer: str) -> float:
    """MMStar (https://arxiv.org/abs/2403.20330) as lmms-eval scores it: `find_letter` among A to D gives the answer."""
    return float(find_letter(pred, "ABCD") == answer.strip().upper())


def scienceqa_letter(text: str) -> str | None:
    """The letter that LLaVA's script reads for ScienceQA (https://arxiv.org/abs/2209.09513), None if it reads none.

    The answer is A to E, or begins with one of them and `. `, or contains exactly one `The answer is X` followed by
    some character. Source: https://github.com/haotian-liu/LLaVA, llava/eval/eval_science_qa.py.
    """
    if text[:1] in tuple("ABCDE") and (len(text) == 1 or text[1:3] == ". "):
        return text[0]
    letters = _SCIENCEQA.findall(text)
    return letters[0] if len(letters) == 1 else None


def scienceqa_llava(pred: str, n_choices: int) -> str | None:
    """`scienceqa_letter` if it is one of the first `n_choices` of A to E, else None (counted wrong)."""
    letter = scienceqa_letter(pred)
    return letter if letter in tuple("ABCDE"[:n_choices]) else None


def scienceqa_lmms(pred: str, answer_letter: str) -> float:
    """ScienceQA as lmms-eval scores it: the answer is the letter in any case, or begins with the capital and a stop.

    Source: lmms-eval's tasks/scienceqa/utils.py.
    """
    pred, letter = pred.strip(), answer_letter.strip().lower()
    if pred[:1].isupper() and pred[1:2] == ".":
        return float(pred[0].lower() == letter)
    return float(pred.lower() == letter)
