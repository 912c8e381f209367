"""Letters and scores of multiple choice, and MMMU, on cases made by hand."""

import pytest

from vtc.eval.metrics.choice import (
    ai2d,
    ai2d_answer,
    circular_hit,
    find_letter,
    mmbench_letter,
    mmbench_prefetch,
    mmstar,
    scienceqa_letter,
    scienceqa_llava,
    scienceqa_lmms,
    seed,
    vlmevalkit_letter,
)
from vtc.eval.metrics.mmmu import mmmu_choice, mmmu_open, mmmu_open_score

OPTIONS = {"A": "a red apple", "B": "two bananas", "C": "Blue sky", "D": "none of them"}


@pytest.mark.parametrize("text, letter", [
    ("B.", "B"), ("(C)", "C"), ("b", ""), ("Cat", "C"), ("It is A good day", "A"), ("A or B", "A"), ("so it is B", "B"),
    ("I pick C, not D: no", "D"), ("(A) or (B)?", "B"), ("(A) B. is", "A"), ("A. B: is", "A"), ("ABxDy", "D"),
    ("x B. y. A) z", "B"), ("answer is A, B, or A", "A"), ("(A) or so: answer is Bob", "B"), ("E", ""), ("", ""),
    ("...", ""),
])  # fmt: skip
def test_find_letter(text, letter):
    """By rank of the form, then the last place; case counts."""
    assert find_letter(text, "ABCD") == letter


def test_mmbench_letter():
    """Rules first, then the letter finder; A among more than three words is an article."""
    assert [mmbench_prefetch(text, OPTIONS) for text in ("B", "A", "A cat sits there", "(D).", "see blue sky")] == [
        "B", "A", None, "D", "C"
    ]  # fmt: skip
    assert mmbench_prefetch("E", OPTIONS) == "E"
    assert (mmbench_prefetch("**B**", OPTIONS), mmbench_letter("**B**", OPTIONS)) == (None, "B")
    assert mmbench_letter("nothing", OPTIONS) is None


@pytest.mark.parametrize("text, letter", [
    ("**B**", "B"), ("so D is it I", "D"), ("D is it I am", None), ("The answer is b, I am sure of it", "B"),
    ("Z", "Z"), ("I can't process this file.", "Z"), ("A B Z", None), ("two bananas", "B"), ("E", None),
    ("two bananas" + " very" * 20, None),
])  # fmt: skip
def test_vlmevalkit_letter(text, letter):
    """A letter among the last four words, a refusal, a declared answer, or the text of an option."""
    assert vlmevalkit_letter(text, OPTIONS) == letter


def test_circular_hit():
    """One wrong rotation makes the question wrong; options that are None do not exist."""
    items = [
        {"prediction": "A.", "answer": "A", "A": "dog", "B": "none", "C": None},
        {"prediction": "dog", "answer": "B", "A": "none", "B": "dog", "C": None},
    ]
    for letter in (mmbench_letter, vlmevalkit_letter):
        assert circular_hit(items, letter) == 1
        assert circular_hit([*items, {**items[0], "prediction": "B"}], letter) == 0


def test_letters_of_seed_ai2d_and_mmstar():
    """The first character; a leading letter and stop, or all of the answer; the letter finder."""
    assert [seed(text, "B") for text in (" b) x", "Because", "(B)", "")] == [1, 1, 0, 0]
    assert [ai2d_answer(text) for text in (" B. x", "B) x")] == ["B", "B) x"]
    assert [ai2d(text, "B") for text in ("B. x", "(b)", " B ", "B) x")] == [1, 1, 1, 0]
    assert [mmstar(text, "b ") for text in ("(B)", "b")] == [1, 0]


def test_scienceqa():
    """The two dialects, and letters beyond the choices."""
    answers = ["B", "b", "B. x", "B.", "The answer is B.", "The answer is B", "The answer is A. The answer is B.", ""]
    assert [scienceqa_lmms(text, "B") for text in answers] == [1, 1, 1, 1, 0, 0, 0, 0]
    assert [scienceqa_letter(text) for text in answers] == ["B", None, "B", None, "B", None, None, None]
    assert [scienceqa_llava(text, 2) for text in ("B", "C", "The answer is F.")] == ["B", None, None]


def test_mmmu_choice():
    """(X) before X before X. before the text of an option; the last of several; None rather than a guess."""
    answers = ["(A) or (B)?", "B or C", "A C xA", "xA. y", "it must be the Blue sky", "so it is Blue sky", "(C) not D "]
    assert [mmmu_choice(text, OPTIONS) for text in answers] == ["B", "C", "C", "A", "C", None, "C"]


def test_mmmu_open():
    """What stands behind the key words, numbers rounded to two digits, a single letter only beside a space."""
    assert mmmu_open("So the result is 1,234") == [1234.0, 234.0]
    assert mmmu_open("y = 2.505") == [round(2.505, 2)]
    assert mmmu_open("a = 3\nb = 4") == [4.0]
    assert mmmu_open("C.") == [" c", "c "]
    pairs = [("It is 42.", "42.0"), ("c", "c"), ("blue c", ["x", "Blue"]), ("7", "8")]
    assert [mmmu_open_score(*pair) for pair in pairs] == [1, 1, 1, 0]
