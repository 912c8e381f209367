"""Means and their standard errors, overall and per group."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

STDERR = "standard error of the mean; binomial, sqrt(p(1-p)/n), for scores that are 0 or 1"


def mean_and_error(scores: Sequence[float]) -> tuple[float, float]:
    """Mean of scores in [0, 1] and its standard error sqrt(variance / n), the variance with denominator n."""
    mean = sum(scores) / len(scores)
    return mean, math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores) / len(scores))


def accuracy(rows: Iterable[dict]) -> dict:
    """Accuracy of answered samples (`group`, `correct` in [0, 1]): overall, per group, and the mean over groups.

    The error of the mean over groups takes groups as independent: sqrt(sum of squared errors) / number of groups.
    Without rows every figure is None.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(float(row["correct"]))
    if not groups:
        return {"accuracy": None, "stderr": None, "macro": None, "macro_stderr": None, "groups": {}, "errors": STDERR}
    overall, error = mean_and_error([s for scores in groups.values() for s in scores])
    parts = {name: mean_and_error(scores) for name, scores in groups.items()}
    return {
        "accuracy": overall,
        "stderr": error,
        "macro": sum(mean for mean, _ in parts.values()) / len(parts),
        "macro_stderr": math.sqrt(sum(e * e for _, e in parts.values())) / len(parts),
        "groups": {
            name: {"n": len(groups[name]), "accuracy": mean, "stderr": e} for name, (mean, e) in sorted(parts.items())
        },
        "errors": STDERR,
    }


def paired_difference(rows: Iterable[dict], baseline: Iterable[dict]) -> dict | None:
    """Mean over shared samples of (score - baseline's score), with the standard error of paired differences."""
    other = {row["id"]: row["correct"] for row in baseline if row["error"] is None}
    pairs = [row["correct"] - other[row["id"]] for row in rows if row["error"] is None and row["id"] in other]
    if not pairs:
        return None
    mean, error = mean_and_error(pairs)
    return {"mean": mean, "stderr": error, "n": len(pairs)}
