"""Soft accuracy, yes or no and short answers on cases made by hand, and what holds of all metrics for any text.

Choices are in tests/test_metrics_choice.py, the values of the official scorers in tests/test_metrics_golden.py.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtc.eval.metrics.choice import (
    ai2d,
    find_letter,
    mmbench_letter,
    mmbench_prefetch,
    mmstar,
    scienceqa_llava,
    scienceqa_lmms,
    seed,
    vlmevalkit_letter,
)
from vtc.eval.metrics.contractions import CONTRACTIONS
from vtc.eval.metrics.mmmu import mmmu_choice, mmmu_open, mmmu_open_score
from vtc.eval.metrics.short import (
    anls,
    gqa_llava,
    gqa_lmms,
    levenshtein,
    ocrbench,
    realworldqa,
    relaxed_accuracy,
)
from vtc.eval.metrics.vqa import (
    normalize,
    normalize_evalai,
    soft_accuracy,
    textvqa_accuracy,
    vqa_accuracy,
    vqa_accuracy_server,
)
from vtc.eval.metrics.yesno import detection, hallusion, mme, pope_llava, pope_lmms, pope_vlmevalkit

OPTIONS = {"A": "a red apple", "B": "two bananas", "C": "Blue sky", "D": "none of them"}
PIECES = [
    *"ABCDEZabc", "A.", "(B)", "C)", ":D.", "**B**", "answer is ", "Answer: ", "so ", "=", "1,000", "3.5", "5%", "-",
    "'s", "dont", "the", "two", "yes", "No", "red apple", "Blue sky", "İ", "ß", "½", "\n", "\t", ".", ",", "?", "'",
]  # fmt: skip
texts = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=9).flatmap(
    lambda parts: st.sampled_from(["", " "]).map(lambda space: space.join(parts))
)


# Soft accuracy


@pytest.mark.parametrize("matches, score", list(enumerate([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1])))
def test_soft_accuracy(matches, score):
    """k of ten annotators; the order of their answers does not count."""
    refs = ["no"] * (10 - matches) + ["yes"] * matches
    assert soft_accuracy("yes", refs) == pytest.approx(score)
    assert soft_accuracy("yes", refs[::-1]) == pytest.approx(score)


def test_soft_accuracy_of_few_references():
    """The definition for other numbers of annotators, down to none."""
    assert soft_accuracy("a", []) == soft_accuracy("a", ["a"]) == 0
    assert soft_accuracy("a", ["a", "b"]) == pytest.approx(1 / 6)
    assert soft_accuracy("a", ["a"] * 4) == 1


@pytest.mark.parametrize("text, expected", [
    ("The two dogs", "2 dogs"), ("none", "0"), ("eleven", "eleven"), ("t-shirt", "t shirt"), ("t - shirt", "t shirt"),
    ("t - shirt-x", "t shirtx"), ("1,2 a-b", "12 ab"), ("1,,2", "12"), ("a,b", "b"), ("3.5.", "3.5"), ("5.x", "5x"),
    ("Dont", "don't"), ("couldntve", "couldntve"), ("couldnt've", "couldn't've"), ("Im", "im"), ("lets", "lets"),
    (" a\tb\n", "b"), ("." * 33, "."), ("", ""),
])  # fmt: skip
def test_normalize(text, expected):
    """Numbers, articles, punctuation as it stands, contractions, and no more than 32 full stops."""
    assert normalize(text) == expected


def test_normalize_evalai():
    """Commas vanish, possessives are set apart; the rest is the other's."""
    assert normalize_evalai("Yes,sir") == "yessir"
    assert normalize("Yes,sir") == "yes sir"
    assert normalize_evalai("mother's day?") == "mother 's day"


def test_contractions():
    """Some entries of the official table, and none that has no apostrophe to put back."""
    assert [CONTRACTIONS[key] for key in ("aint", "twas", "oclock", "hed've", "y'alld've", "'ows'at", "yall")] == [
        "ain't", "'twas", "o'clock", "he'd've", "y'all'd've", "'ow's'at", "y'all"
    ]  # fmt: skip
    assert not {"im", "ive", "shes", "lets", "its", "ill", "well"} & set(CONTRACTIONS)
    assert CONTRACTIONS["somebody'd"] == "somebodyd"
    assert all(len(full) == len(key) + 1 for key, full in CONTRACTIONS.items() if key != "somebody'd")


def test_vqa_dialects():
    """The server's script leaves articles in the references, unless all are equal when it leaves everything."""
    mixed = ["the dog"] * 4 + ["a-cat"] * 6
    assert (vqa_accuracy("dog", mixed), vqa_accuracy_server("dog", mixed)) == (1, 0)
    assert (vqa_accuracy("cat.", mixed), vqa_accuracy_server("cat.", mixed)) == (1, 0)
    assert vqa_accuracy_server("t shirt", ["t-shirt"] * 9 + ["shirt"]) == 1
    assert vqa_accuracy_server("t shirt", ["t-shirt"] * 10) == 0
    assert (textvqa_accuracy("yes, sir", ["yes,sir"] * 10), vqa_accuracy("yes, sir", ["yes,sir"] * 10)) == (0, 1)


# Yes or no


@pytest.mark.parametrize("text, llava, lmms, vlmevalkit", [
    ("Nope", "yes", None, None), ("No.", "no", None, "no"), ("NO", "yes", "no", "no"), ("not sure", "no", None, None),
    ("Yes. No.", "yes", None, None), ("", "yes", None, None), ("Yes, there is.", "yes", None, "yes"),
    ("No\n", "yes", "no", "no"), ("1,2 yes-x", "yes", None, None), ("1,,2 yes-x", "yes", None, "yes"),
    ("1. " * 32 + "no.", "yes", None, "no"), ("a. " * 32 + "no.", "yes", None, None),
])  # fmt: skip
def test_pope_dialects(text, llava, lmms, vlmevalkit):
    """The same answer in three readings."""
    assert (pope_llava(text), pope_lmms(text), pope_vlmevalkit(text)) == (llava, lmms, vlmevalkit)


def test_other_yes_no():
    """MME looks at four letters, HallusionBench at all."""
    answers = ["Y", "n.", "Yes", "yesterday", "I know", "know", "a yes", "", "Y.es"]
    assert [mme(text) for text in answers] == ["yes", "no", "yes", "yes", "other", "no", "other", "other", "yes"]
    assert [hallusion(text) for text in ("The answer is YES.", "eyes", "No", "")] == ["yes", "yes", "no", "no"]


def test_detection():
    """Figures by hand; answers that are neither are wrong, and in neither precision nor recall."""
    figures = detection(tp=6, fp=2, fn=3, tn=8, other=1)
    assert figures == pytest.approx(
        {"accuracy": 14 / 20, "precision": 6 / 8, "recall": 6 / 9, "f1": 12 / 17, "yes_ratio": 8 / 20}
    )
    assert all(type(value) is float for value in figures.values())


@pytest.mark.filterwarnings("error")
def test_detection_elementwise():
    """Arrays give what their elements give, denominators 0 included, without a warning."""
    counts = np.array([[6, 2, 3, 8], [0, 0, 3, 1], [0, 2, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    together = detection(*counts.T)
    for name in together:
        np.testing.assert_array_equal(together[name], [detection(*map(float, row))[name] for row in counts])
    assert math.isnan(detection(0, 0, 3, 1)["precision"])
    assert math.isnan(detection(0, 1, 1, 0)["f1"])
    assert all(math.isnan(value) for value in detection(0, 0, 0, 0).values())


# Short answers


def test_gqa():
    """LLaVA forgives a final stop, lmms-eval any punctuation; neither forgives an article."""
    pairs = [("Left..", "left"), (" yes ", "yes"), ("yes!", "yes"), ("tshirt", "t-shirt"), ("the dog", "dog")]
    assert [gqa_llava(*pair) for pair in pairs] == [1, 1, 0, 0, 0]
    assert [gqa_lmms(*pair) for pair in pairs] == [1, 1, 1, 1, 0]


def test_levenshtein():
    """Known distances, either way round, and what a limit does."""
    for a, b, distance in (("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)):
        assert levenshtein(a, b) == levenshtein(b, a) == distance
    assert [levenshtein("kitten", "sitting", limit) for limit in (0, 1, 2, 3, 4)] == [1, 2, 3, 3, 3]


def test_anls():
    """Exactly 0.5 is kept, the best reference counts, lengths are those before normalisation."""
    assert anls("abcd", ["abef"]) == 0.5
    assert anls("abcde", ["abxyz"]) == 0
    assert anls("Helo ", ["x", "hello"]) == pytest.approx(0.8)
    assert anls("new york", ["new  york "]) == anls("", [""]) == 1
    assert anls("nex york", [" new  york "]) == pytest.approx(1 - 1 / 11)
    assert anls("strase", ["straße"]) == pytest.approx(1 - 1 / 7)
    assert anls(" bcbxb", ["bfb"]) == 0
    assert (anls("a", []), anls("", ["hello"])) == (0, 0)


@pytest.mark.parametrize("pred, answer, score", [
    ("5%", "5", 0), ("5%", "0.05", 1), ("5 %", "5%", 1), ("105", "100", 1), ("105.1", "100", 0), ("-3", "-3.1", 1),
    ("3", "-3", 0), ("0.0", "0", 0), ("0", "0", 1), ("1,000", "1000", 0), ("Red", "red", 1), ("nan", "nan", 0),
    ("inf", "inf", 0), ("%", "%", 1), ("", "", 1),
])  # fmt: skip
def test_relaxed_accuracy(pred, answer, score):
    """5 % of the reference, percentages as fractions, equality for everything else."""
    assert relaxed_accuracy(pred, answer) == score


def test_ocrbench():
    """Containment; formulas keep their case and lose their spaces."""
    assert ocrbench("The word is CENTRE.", ["x", "Centre"], "IIIT5K") == 1
    assert ocrbench("ＡＢ　Ｃ", "ab c", "docVQA") == 1
    assert ocrbench("a\nb", ["a b"], "docVQA") == 1
    assert ocrbench("a", [], "docVQA") == 0
    assert [ocrbench(text, ["x^2"], "HME100k") for text in ("x ^\n2", "X^2")] == [1, 0]


def test_realworldqa():
    """Letters are looked for, everything else is compared."""
    assert [realworldqa(text, "B") for text in ("B", "The answer is B.", "b", "A or B")] == [1, 1, 0, 0]
    assert [realworldqa(text, " Downhill") for text in ("downhill.", "down hill")] == [1, 0]


# Any text


@given(texts, st.lists(texts, max_size=10))
def test_scores_are_scores(pred, answers):
    """Every scorer gives a float in [0, 1] for any text."""
    answer = (answers or [""])[0]
    scores = [score(pred, answers) for score in (vqa_accuracy, vqa_accuracy_server, textvqa_accuracy, anls)]
    scores += [ocrbench(pred, answers, dataset) for dataset in ("HME100k", "docVQA")] + [mmmu_open_score(pred, answers)]
    pairwise = (gqa_llava, gqa_lmms, relaxed_accuracy, realworldqa, seed, ai2d, mmstar, scienceqa_lmms, mmmu_open_score)
    scores += [score(pred, answer) for score in pairwise]
    assert all(type(score) is float and 0 <= score <= 1 for score in scores)


@given(texts)
def test_readings_are_readings(text):
    """Every reader gives one of its values for any text; without an answer in it the letters are none."""
    assert pope_llava(text) in ("yes", "no")
    assert {pope_lmms(text), pope_vlmevalkit(text)} <= {"yes", "no", None}
    assert mme(text) in ("yes", "no", "other")
    assert hallusion(text) in ("yes", "no")
    assert find_letter(text, "ABCD") in ("", *OPTIONS)
    assert {mmbench_letter(text, OPTIONS), mmbench_prefetch(text, OPTIONS)} <= {*OPTIONS, "E", None}
    assert vlmevalkit_letter(text, OPTIONS) in (*OPTIONS, "Z", None)
    assert mmmu_choice(text, OPTIONS) in (*OPTIONS, None)
    assert scienceqa_llava(text, 3) in ("A", "B", "C", None)
    assert mmmu_open(text)


@given(texts)
def test_a_text_matches_itself(text):
    """The reference given back ten times is right, and its distance to itself 0."""
    for score in (vqa_accuracy, textvqa_accuracy):
        assert score(text, [text] * 10) == 1
    assert anls(text, [text.strip()]) == gqa_lmms(text.strip(), text.strip()) == 1
    assert levenshtein(text, text) == 0


@given(st.text("abc", max_size=9), st.text("abc", max_size=9), st.none() | st.integers(0, 9))
def test_levenshtein_against_the_recurrence(a, b, limit):
    """The band gives what the whole table gives, cut at the limit."""
    table = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            edits = table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1])
            table[i, j] = min(edits)
    distance = table[len(a), len(b)]
    assert levenshtein(a, b, limit) == (distance if limit is None else min(distance, limit + 1))
