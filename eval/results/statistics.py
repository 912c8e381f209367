"""The uncertainty of figures and of differences between runs: bootstrap over groups, exact McNemar test, agreement.

Rows are those of a sample log with the scores of `Task.score`; those with an `error` are left out. Groups
(`Task.group`) are resampled: both questions about a picture of MME, all rotations of a question of MMBench. Every
function is deterministic. An unknown value is None.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

REPLICATES = 1000  # the relative standard error of a standard error is then 1 / sqrt(2 * 1000), or 2 %
_MOST = 3 * 2**20  # numbers in an array of draws: 24 MB, and as much again for its products

RIGHT = 0.5  # the least `correct` of an answer that counts as right


def bootstrap(task, rows: Iterable[Mapping], replicates: int = REPLICATES, seed: int = 0) -> dict[str, dict]:
    """Every figure of the task with `value`, `stderr` and `ci95` [low, high].

    Nonparametric bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13): G of the
    G groups are drawn with replacement, `replicates` times; stderr is the standard deviation of the replicates' figures
    (denominator R - 1), ci95 their 2.5 and 97.5 percentiles. Replicates in which a figure is undefined, such as that
    of a category that was not drawn, are left out of its error. With a single group both are None; without rows only
    the primary figure is returned, with all values None.
    """
    rows = [row for row in rows if row["error"] is None]
    sums = list(_tallies(task, rows, [row["group"] for row in rows]).values())
    if not sums:
        return {task.primary: {"value": None, "stderr": None, "ci95": None}}
    names, table = _table(sums)
    values = _figures(task, names, _total(table))
    if len(sums) == 1:
        return {name: {"value": _known(value), "stderr": None, "ci95": None} for name, value in values.items()}
    drawn = _figures(task, names, _resampled([table], replicates, seed)[0].T)
    return {name: {"value": _known(value), **_spread(drawn[name])} for name, value in values.items()}


def compare(task, rows: Iterable[Mapping], baseline: Iterable[Mapping], replicates: int = REPLICATES,
            seed: int = 0) -> dict:  # fmt: skip
    """Compares a run with a baseline, on the samples that both answered.

    n: the number of those samples. differences: for every figure, run minus baseline, with `value`, `stderr`, `ci95`
    and `p`; difference: that of the primary figure, with n. relative, relative_stderr: the primary figure, run divided
    by baseline. The bootstrap is paired: both runs are evaluated on the same drawn groups. p is two-sided: twice the
    share of replicates on the rarer side of 0, with one added to both counts (Davison and Hinkley, Bootstrap Methods
    and their Application, 1997, section 4.4), so never below 2 / (R + 1). mcnemar: see `mcnemar`, None if a score is
    neither 0 nor 1. loyalty: see `loyalty`.
    """
    own_rows, base_rows = shared(rows, baseline)
    unknown = {"value": None, "stderr": None, "ci95": None, "p": None}
    result = {
        "n": len(own_rows),
        "relative": None,
        "relative_stderr": None,
        "difference": {**unknown, "n": len(own_rows)},
        "differences": {},
        "mcnemar": mcnemar(own_rows, base_rows),
        "loyalty": loyalty(own_rows, base_rows),
    }
    if not own_rows:
        return result
    groups = [row["group"] for row in own_rows]
    sums, base_sums = _tallies(task, own_rows, groups), _tallies(task, base_rows, groups)
    tables = [_table(sums.values()), _table(base_sums.values())]
    value, other = (_figures(task, names, _total(table)) for names, table in tables)
    drawn: list[dict] = [{}, {}]
    if len(sums) > 1:
        resampled = _resampled([table for _, table in tables], replicates, seed)
        drawn = [_figures(task, names, sums.T) for (names, _), sums in zip(tables, resampled)]
    for name in value:
        if name in other:
            gaps = drawn[0].get(name, np.empty(0)) - drawn[1].get(name, np.empty(0))
            gap = _known(value[name] - other[name])
            result["differences"][name] = {"value": gap, **_spread(gaps), "p": _two_sided(gaps)}
    result["difference"] = {**result["differences"].get(task.primary, unknown), "n": len(own_rows)}
    if task.primary in result["differences"]:
        result["relative"] = relative(value[task.primary], other[task.primary])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = drawn[0].get(task.primary, np.empty(0)) / drawn[1].get(task.primary, np.empty(0))
        result["relative_stderr"] = _spread(ratios)["stderr"]
    return result


def shared(rows: Iterable[Mapping], others: Iterable[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """The rows of both on the samples that both answered, in the order of the first."""
    by_id = {row["id"]: row for row in others if row["error"] is None}
    first = [row for row in rows if row["error"] is None and row["id"] in by_id]
    return first, [by_id[row["id"]] for row in first]


def mcnemar(rows: Sequence[Mapping], baseline: Sequence[Mapping]) -> dict | None:
    """McNemar's test (Psychometrika 12, 1947) on paired right and wrong answers, in its exact form.

    b: the number of samples that only `baseline` got right; c: that only `rows` got right; p: the two-sided probability
    of such an imbalance in b + c tosses of a fair coin. None without rows or if a `correct` is neither 0 nor 1. The
    test assumes independent samples: if groups have several samples, rely on the bootstrap's p.
    """
    pairs = [(row["score"]["correct"], other["score"]["correct"]) for row, other in zip(rows, baseline)]
    if not pairs or any(score not in (0, 1) for pair in pairs for score in pair):
        return None
    b, c = pairs.count((0, 1)), pairs.count((1, 0))
    return {"b": b, "c": c, "p": binomial(min(b, c), b + c)}


def binomial(k: int, n: int) -> float:
    """min(1, 2 P(X <= k)) for X heads in n tosses of a fair coin: the two-sided exact p of k <= n / 2."""
    log = math.lgamma(n + 1) - n * math.log(2)
    return min(1.0, 2 * math.fsum(math.exp(log - math.lgamma(i + 1) - math.lgamma(n - i + 1)) for i in range(k + 1)))


def loyalty(rows: Sequence[Mapping], baseline: Sequence[Mapping]) -> float | None:
    """The share of samples with the same answer as the unpruned model's, right or wrong.

    Answers are the same if their `parsed` are equal or, where both are None, their texts are equal up to case and outer
    white space. The term is from EffiVLM-Bench (arXiv 2506.00479); arXiv 2503.06794 shows how much it can drop while
    accuracy stays the same.
    """
    same = [_answer(row) == _answer(other) for row, other in zip(rows, baseline)]
    return sum(same) / len(same) if same else None


def _answer(row: Mapping) -> tuple:
    parsed = row["score"].get("parsed")
    return ("text", row["text"].strip().casefold()) if parsed is None else ("parsed", parsed)


def relative(value: float | None, reference: float | None) -> float | None:
    """value / reference; None if either is unknown or the reference is 0."""
    value, reference = _known(value), _known(reference)
    return value / reference if value is not None and reference else None


def average(compared: Mapping[str, Mapping]) -> dict:
    """The papers' "Avg. %": the mean over tasks of the score divided by the unpruned model's score.

    compared: results of `compare` by task. value: the mean over `tasks`, those with a known ratio; stderr: from the
    paired bootstrap errors of the ratios, with tasks assumed independent: sqrt(sum of squares) / number of tasks, None
    if one is unknown.
    """
    known = {name: entry for name, entry in compared.items() if entry["relative"] is not None}
    if not known:
        return {"value": None, "stderr": None, "tasks": []}
    errors = [entry["relative_stderr"] for entry in known.values()]
    return {
        "value": math.fsum(entry["relative"] for entry in known.values()) / len(known),
        "stderr": None if None in errors else math.hypot(*errors) / len(known),
        "tasks": list(known),
    }


def sensitive(full: Iterable[Mapping], smaller: Iterable[Mapping]) -> set[str]:
    """The ids of samples that tell pruning methods apart: the full model is right on them, but not on a smaller picture.

    Group A of VTC-Bench (arXiv 2510.07143; `tools/analyze_results.py` in the authors' repository): most samples of
    common benchmarks can be answered from a coarse picture, so all methods look alike on them. As there, right means
    `correct` >= 0.5; on the smaller picture any score below the full model's counts as wrong, which for scores of 0
    and 1 is the same as there.
    """
    pairs = zip(*shared(full, smaller))
    scores = ((row["id"], row["score"]["correct"], other["score"]["correct"]) for row, other in pairs)
    return {ident for ident, whole, coarse in scores if whole >= RIGHT and coarse < whole}


def accuracy_on(idents: set[str], rows: Iterable[Mapping]) -> dict:
    """n: the number of answered rows among `idents`; value: the mean of their `correct`, None if there are none."""
    scores = [row["score"]["correct"] for row in rows if row["error"] is None and row["id"] in idents]
    return {"n": len(scores), "value": math.fsum(scores) / len(scores) if scores else None}


def _tallies(task, rows: Iterable[Mapping], groups: Iterable[str]) -> dict[str, Mapping]:
    """The tally of each group, in the order of their first rows."""
    members: dict[str, list] = defaultdict(list)
    for row, group in zip(rows, groups):
        members[group].append(row)
    return {group: task.tally(group_rows) for group, group_rows in members.items()}


def _table(tallies: Iterable[Mapping]) -> tuple[list[str], np.ndarray]:
    """The names of the sums, and their values [groups, names]."""
    tallies = list(tallies)
    names = sorted({name for tally in tallies for name in tally})
    place = {name: j for j, name in enumerate(names)}
    table = np.zeros((len(tallies), len(names)))
    for i, tally in enumerate(tallies):
        for name, value in tally.items():
            table[i, place[name]] = value
    return names, table


def _total(table: np.ndarray) -> np.ndarray:
    """The sums over all groups [K], correctly rounded, so that their order does not matter."""
    return np.array([math.fsum(column) for column in table.T])


def _resampled(tables: list[np.ndarray], replicates: int, seed: int) -> list[np.ndarray]:
    """For each table [G, K] the sums [R, K] over G groups drawn with replacement, the same groups for all tables.

    Groups with equal rows are interchangeable: only the number drawn of each kind matters, which is multinomial. There
    are far fewer kinds than groups, and they are sorted, so that the order of the rows does not matter either.
    """
    kinds, counts = np.unique(np.hstack(tables), axis=0, return_counts=True)
    ends = np.cumsum([table.shape[1] for table in tables])[:-1]
    parts = [np.ascontiguousarray(part) for part in np.split(kinds, ends, axis=1)]
    generator, total = np.random.default_rng(seed), counts.sum()
    step = max(1, _MOST // len(kinds))
    chunks: list[list] = [[] for _ in tables]
    for start in range(0, replicates, step):
        drawn = generator.multinomial(total, counts / total, size=min(step, replicates - start)).astype(float)
        for sums, part in zip(chunks, parts):
            sums.append(drawn @ part)
    return [np.concatenate(sums) for sums in chunks]


def _figures(task, names: list[str], sums: np.ndarray) -> dict[str, np.ndarray]:
    """The task's figures, of shape [] or [R], from sums [K], or [K, R] of replicates."""
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = task.figures(dict(zip(names, sums)))
    return {name: np.broadcast_to(np.asarray(value, dtype=float), sums.shape[1:]) for name, value in figures.items()}


def _known(value: object) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _spread(drawn: np.ndarray) -> dict:
    known = drawn[np.isfinite(drawn)]
    if len(known) < 2:
        return {"stderr": None, "ci95": None}
    return {"stderr": float(known.std(ddof=1)), "ci95": np.percentile(known, (2.5, 97.5)).tolist()}


def _two_sided(drawn: np.ndarray) -> float | None:
    known = drawn[np.isfinite(drawn)]
    if len(known) < 2:
        return None
    rarer = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2 * (int(rarer) + 1) / (len(known) + 1))
