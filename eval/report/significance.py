"""Significance: paired tests of many runs with a correction for multiple comparisons, and Pareto fronts."""

import math
from collections.abc import Mapping, Sequence

from vtc.eval.results import statistics

ALPHA = 0.05
LEAST_REPLICATES, MOST_REPLICATES = 10_000, 20_000


def replicates(tests: int) -> int:
    """Enough replicates R that the smallest possible p, 2 / (R + 1), is below 0.05 after correcting for `tests`."""
    return min(MOST_REPLICATES, max(LEAST_REPLICATES, 100 * tests))


def paired(
    judge: object, logs: Mapping[int, Sequence | None], pairs: Mapping[int, int], draws: int
) -> dict[int, tuple[float, float]]:
    """For each run in `pairs` (run -> the run it is compared with) the two-sided p of the difference of the primary
    figures by paired bootstrap over groups (`statistics.compare`), and that p after Holm's correction over `pairs`.

    judge: the task; logs: scored rows by run. Runs without a log and those with a single group are left out.
    """
    p_values = {}
    for i, j in pairs.items():
        if logs.get(i) is not None and logs.get(j) is not None:
            p = statistics.compare(judge, logs[i], logs[j], draws)["difference"]["p"]
            if p is not None:
                p_values[i] = p
    return dict(zip(p_values, zip(p_values.values(), holm(list(p_values.values())))))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Scandinavian Journal of Statistics 6, 1979), in the given order.

    The k-th smallest of m is multiplied by m - k + 1, capped at 1, and raised to the largest one before it.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, least = [0.0] * len(p), 0.0
    for k, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - k) * p[i]))
        adjusted[i] = least
    return adjusted


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto front of points (cost, figure): no other point is at least as good in both and better in
    one. From cheapest to most expensive; of equal points the first."""
    indices: list[int] = []
    best = -math.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[i][1] > best:
            indices.append(i)
            best = points[i][1]
    return indices
