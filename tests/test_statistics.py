"""Standard errors and tests against closed forms, hand-computed values and resampling spelled out."""

import math
import tracemalloc
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from vtc.eval.metrics import aggregate
from vtc.eval.results import statistics
from vtc.eval.results.statistics import average, bootstrap, compare, loyalty, mcnemar, relative, sensitive


class Plain:
    """What the statistics need of a task: accuracy over all rows."""

    primary = "accuracy"
    tally = staticmethod(aggregate.tally)
    figures = staticmethod(aggregate.accuracy)


class Macro(Plain):
    """The mean over categories."""

    primary = "macro"


class Points(Plain):
    """In points: the share of right rows and that of groups with every row right, times 100."""

    primary = "points"

    @staticmethod
    def tally(rows: Sequence[Mapping]) -> dict:
        """Rows and groups, and how many are right."""
        right = [row["score"]["correct"] for row in rows]
        return {"n": len(right), "right": sum(right), "groups": 1, "all": float(all(right))}

    @staticmethod
    def figures(sums: Mapping) -> dict:
        """acc + acc+."""
        right, all_right = aggregate.ratio(sums["right"], sums["n"]), aggregate.ratio(sums["all"], sums["groups"])
        return {"points": 100 * (right + all_right)}


def row(ident: str, correct: float, group: str | None = None, category: str = "a", **more) -> dict:
    """An answered sample; `parsed` goes to its score."""
    score = {"correct": correct} | {key: more.pop(key) for key in ("parsed",) if key in more}
    place = {"id": ident, "group": group or ident, "category": category}
    return {**place, "text": "", "score": score, "error": None, **more}


def scores(n: int, p: float, seed: int = 0) -> np.ndarray:
    """n zeros and ones, shuffled, with exactly round(n p) ones."""
    return np.random.default_rng(seed).permutation(np.arange(n) < round(n * p)).astype(float)


def rows_of(values: Sequence[float], **more) -> list[dict]:
    """One group per sample."""
    return [row(str(i), float(value), **more) for i, value in enumerate(values)]


FAILED = {"id": "broken", "group": "broken", "category": "a", "text": None, "score": None, "error": "RuntimeError: x"}


@pytest.mark.parametrize("n, p", [(100, 0.5), (1000, 0.85), (20_000, 0.1)])
def test_binomial(n, p):
    """A share of right answers has sqrt(p (1 - p) / n), and 1.96 of it to either side."""
    found = bootstrap(Plain, [*rows_of(scores(n, p)), FAILED])["accuracy"]
    exact = math.sqrt(p * (1 - p) / n)
    assert found["value"] == p
    assert found["stderr"] == pytest.approx(exact, rel=0.05)
    assert found["ci95"] == pytest.approx([p - 1.96 * exact, p + 1.96 * exact], abs=0.3 * exact)


def test_of_two_replicates():
    """Their spread has one degree of freedom: |a - b| / sqrt(2), of which the percentiles leave out a twentieth."""
    found = bootstrap(Plain, rows_of(scores(100, 0.5)), replicates=2)["accuracy"]
    low, high = found["ci95"]
    assert found["stderr"] == pytest.approx((high - low) / 0.95 / math.sqrt(2))
    assert found["stderr"] > 0


def test_soft_scores():
    """Scores between 0 and 1: the standard deviation over the root of n."""
    values = np.random.default_rng(1).choice([0, 0.3, 0.6, 0.9, 1], size=3000)
    found = bootstrap(Plain, rows_of(values))["accuracy"]
    assert found["value"] == pytest.approx(values.mean())
    assert found["stderr"] == pytest.approx(values.std() / math.sqrt(3000), rel=0.05)


def test_macro():
    """The mean over three categories: root of the sum of squared errors, over three."""
    sizes = {"a": (600, 0.9), "b": (600, 0.5), "c": (600, 0.2)}
    rows = [
        row(f"{name}{i}", value, category=name)
        for name, (n, p) in sizes.items()
        for i, value in enumerate(scores(n, p))
    ]
    found = bootstrap(Macro, rows)
    exact = math.sqrt(sum(p * (1 - p) / n for n, p in sizes.values())) / 3
    assert found["macro"]["value"] == pytest.approx(1.6 / 3)
    assert found["macro"]["stderr"] == pytest.approx(exact, rel=0.05)
    assert found["accuracy/b"]["stderr"] == pytest.approx(0.5 / math.sqrt(600), rel=0.05)


def test_groups_are_drawn_whole():
    """Rows that are equal within their group say no more than one of them: the error is sqrt(2) as large."""
    values = scores(500, 0.7)
    twice = [row(f"{i}{k}", value, group=str(i)) for i, value in enumerate(values) for k in "xy"]
    apart = [{**one, "group": one["id"]} for one in twice]
    together = bootstrap(Plain, twice)["accuracy"]["stderr"]
    assert together == pytest.approx(math.sqrt(0.7 * 0.3 / 500), rel=0.05)
    assert bootstrap(Plain, apart)["accuracy"]["stderr"] == pytest.approx(together / math.sqrt(2), rel=0.08)


def test_points():
    """MME's acc + acc+ is a mean over pictures, so its error is that of a mean; values are points."""
    first, second = scores(400, 0.8), scores(400, 0.7, seed=1)
    rows = [row(f"{i}{k}", value[i], group=str(i)) for i in range(400) for k, value in enumerate((first, second))]
    each = 100 * ((first + second) / 2 + first * second)
    found = bootstrap(Points, rows)["points"]
    assert found["value"] == pytest.approx(each.mean())
    assert found["stderr"] == pytest.approx(each.std() / 20, rel=0.05)


def test_same_as_drawing_indices():
    """Counting draws per kind of group is the bootstrap: mean, spread and percentiles of drawing group by group."""
    rng = np.random.default_rng(5)
    rows = [row(str(i), rng.choice([0, 0.3, 1]), group=str(i // 3), category="ab"[i % 2]) for i in range(90)]
    names, table = statistics._table(statistics._tallies(Macro, rows, [one["group"] for one in rows]).values())
    drawn = statistics._resampled([table], 20_000, 0)[0]
    plain = table[rng.integers(len(table), size=(20_000, len(table)))].sum(1)
    ours, theirs = (Macro.figures(dict(zip(names, sums.T)))["macro"] for sums in (drawn, plain))
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.001)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
    assert np.percentile(ours, (2.5, 97.5)) == pytest.approx(np.percentile(theirs, (2.5, 97.5)), abs=0.005)


def test_deterministic(monkeypatch):
    """Neither the order of rows nor the size of chunks matters; the seed does."""
    rows = rows_of(np.random.default_rng(2).random(50))
    found = bootstrap(Plain, rows)
    assert bootstrap(Plain, rows[::-1]) == found
    assert bootstrap(Plain, rows, seed=1)["accuracy"]["stderr"] != found["accuracy"]["stderr"]
    monkeypatch.setattr(statistics, "_MOST", 120)
    assert bootstrap(Plain, rows)["accuracy"]["ci95"] == pytest.approx(found["accuracy"]["ci95"])


def test_little_to_go_on():
    """One group has no error; no row has no figure; what some replicates lack is judged by the others."""
    one = bootstrap(Plain, [row("1", 1.0, group="g"), row("2", 0.0, group="g")])
    assert one["accuracy"] == {"value": 0.5, "stderr": None, "ci95": None}
    assert bootstrap(Macro, [FAILED]) == {"macro": {"value": None, "stderr": None, "ci95": None}}
    rows = [row("1", 1.0), row("2", 0.0, category="b"), row("3", 1.0, category="b")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap(Macro, rows)
    assert found["accuracy/a"] == {"value": 1.0, "stderr": 0.0, "ci95": [1.0, 1.0]}
    assert 0.2 < found["macro"]["stderr"] < 0.4

    class Nothing(Plain):
        figures = staticmethod(lambda sums: {"accuracy": 0.0 * aggregate.ratio(sums["n/a"], 0.0)})

    found = compare(Nothing, rows, rows)
    assert bootstrap(Nothing, rows)["accuracy"] == {"value": None, "stderr": None, "ci95": None}
    assert (found["relative"], found["difference"]["p"]) == (None, None)


def test_many_groups_need_little_memory():
    """200,000 groups, no two alike, never make a matrix of replicates by groups."""
    table = np.random.default_rng(0).random((200_000, 2))
    tracemalloc.start()
    try:
        sums = statistics._resampled([table], 60, 0)[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sums.shape == (60, 2)
    assert sums.std(0) == pytest.approx(math.sqrt(200_000 / 12) * np.ones(2), rel=0.4)
    assert peak < 90 * 2**20 < 60 * 200_000 * 8


@pytest.mark.parametrize("task", [Plain, Macro, Points])
def test_equal_runs(task):
    """Against itself a run differs by nothing, exactly, and is itself surely."""
    values = np.random.default_rng(3).choice([0, 1] if task is Points else [0, 0.3, 0.6, 0.9, 1], size=301)
    rows = [row(str(i), float(v), group=str(i // 2), category="abc"[i % 3]) for i, v in enumerate(values)]
    found = compare(task, [*rows, FAILED], rows[::-1])
    zero = {"value": 0.0, "stderr": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    assert found["difference"] == {**zero, "n": 301}
    assert all(gap == zero for gap in found["differences"].values())
    assert (found["relative"], found["relative_stderr"], found["loyalty"], found["n"]) == (1.0, 0.0, 1.0, 301)
    assert found["mcnemar"] == ({"b": 0, "c": 0, "p": 1.0} if task is Points else None)


def test_paired_difference():
    """The error is that of the mean of differences, the p that of a normal with it; other samples do not count."""
    base, change = scores(2000, 0.8), scores(2000, 0.04, seed=4)
    worse = np.where(change == 1, 1 - base, base)
    gaps = worse - base
    extra = [row("only here", 1.0), FAILED]
    found = compare(Plain, [*rows_of(worse), *extra], rows_of(base))
    exact = gaps.std() / math.sqrt(2000)
    assert found["n"] == found["difference"]["n"] == 2000
    assert found["difference"]["value"] == pytest.approx(gaps.mean())
    assert found["difference"]["stderr"] == pytest.approx(exact, rel=0.05)
    assert found["difference"]["stderr"] < 0.5 * bootstrap(Plain, rows_of(worse))["accuracy"]["stderr"]
    assert found["relative"] == pytest.approx(worse.mean() / base.mean())
    assert found["relative_stderr"] == pytest.approx(exact / base.mean(), rel=0.05)
    assert found["mcnemar"]["b"] - found["mcnemar"]["c"] == pytest.approx(-gaps.sum())
    assert found["loyalty"] == 1.0, "all texts are empty here"
    one_in_two = compare(Plain, rows_of(worse)[:1000], rows_of(base)[500:])
    assert one_in_two["n"] == 500


@pytest.mark.parametrize("shift", [0.5, 1.5, 2.5])
def test_bootstrap_p(shift):
    """Where the normal approximation holds, p is the normal's."""
    noise = np.random.default_rng(6).normal(size=500)
    noise = (noise - noise.mean()) / noise.std()
    base, run = np.full(500, 0.5), 0.5 + 0.01 * (noise + shift / math.sqrt(500))
    found = compare(Plain, rows_of(run), rows_of(base), replicates=20_000)["difference"]
    assert found["p"] == pytest.approx(math.erfc(shift / math.sqrt(2)), rel=0.1, abs=0.002)
    assert (found["p"] < 0.05) == (not found["ci95"][0] <= 0 <= found["ci95"][1])


@pytest.mark.parametrize(
    "b, c, p",
    [(0, 0, 1), (1, 0, 1), (6, 0, 2 / 64), (1, 9, 22 / 1024), (9, 1, 22 / 1024), (5, 5, 1), (4, 7, 1124 / 2048)],
)
def test_mcnemar(b, c, p):
    """Binomial sums made by hand; rows on which both agree do not count."""
    pairs = [(0, 1)] * b + [(1, 0)] * c + [(1, 1)] * 3 + [(0, 0)] * 4
    mine, theirs = (rows_of(side) for side in zip(*pairs))
    assert mcnemar(mine, theirs) == {"b": b, "c": c, "p": pytest.approx(p)}


def test_mcnemar_far_out():
    """Large counts neither overflow nor take the normal's place; soft scores have no such test."""
    exact = sum(math.comb(3000, i) for i in range(1401)) * 2 / 2**3000
    assert statistics.binomial(1400, 3000) == pytest.approx(exact, rel=1e-9)
    assert 0 < statistics.binomial(48_000, 100_000) < 1e-30
    assert mcnemar(rows_of([1, 0.5]), rows_of([1, 1])) is None
    assert mcnemar([], []) is None


def test_loyalty():
    """By what was understood where both were, else by the texts."""
    base = [
        row("1", 1, parsed="A"),
        row("2", 0, parsed=None, text="Dog "),
        row("3", 0, parsed="B"),
        row("4", 1, text="x"),
    ]
    mine = [
        row("1", 1, parsed="A"),
        row("2", 0, parsed=None, text=" dog"),
        row("3", 0, parsed=None),
        row("4", 1, text="y"),
    ]
    mine[0]["text"] = "A, I think"
    assert loyalty(mine, base) == 0.5
    assert loyalty([], []) is None


def test_relative_and_average():
    """Ratios, and their mean with the error of independent ones; what is unknown is left out and named."""
    assert relative(0.6, 0.8) == pytest.approx(0.75)
    assert relative(0.6, 0.0) is relative(None, 0.5) is relative(0.5, None) is relative(math.nan, 1.0) is None
    known = {"a": {"relative": 0.9, "relative_stderr": 0.03}, "b": {"relative": 1.0, "relative_stderr": 0.04}}
    unknown = {"relative": None, "relative_stderr": None}
    assert average({**known, "c": unknown}) == {"value": 0.95, "stderr": pytest.approx(0.025), "tasks": ["a", "b"]}
    assert average({"c": unknown}) == {"value": None, "stderr": None, "tasks": []}
    assert average({"a": {"relative": 0.9, "relative_stderr": None}})["stderr"] is None


def test_average_covers():
    """The error of the average is the spread of averages over repeated evaluations."""
    rng, spread, errors = np.random.default_rng(7), [], []
    for _ in range(60):
        compared = {}
        for task in "ab":
            base = (rng.random(400) < 0.8).astype(float)
            run = np.where(rng.random(400) < 0.1, 0, base)
            compared[task] = compare(Plain, rows_of(run), rows_of(base), replicates=100)
        found = average(compared)
        spread.append(found["value"])
        errors.append(found["stderr"])
    assert np.mean(errors) == pytest.approx(np.std(spread, ddof=1), rel=0.25)


def test_sensitive():
    """Right with the full picture and not with the small one; soft scores: at least half, and more than with it."""
    full, small = rows_of([1, 1, 0, 0, 0.9, 0.6, 0.3, 1]), rows_of([0, 1, 0, 1, 0.6, 0.6, 0])
    subset = sensitive([*full, FAILED], [*small, FAILED])
    assert subset == {"0", "4"}
    assert statistics.accuracy_on(subset, [*rows_of([1, 0, 0, 0, 0.3]), FAILED]) == {"n": 2, "value": 0.65}
    assert statistics.accuracy_on(set(), full) == {"n": 0, "value": None}
