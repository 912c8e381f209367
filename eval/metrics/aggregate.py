"""Figures from sums over groups, as most benchmarks report them: plain numbers, or arrays of bootstrap replicates."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

PER_CATEGORY = "accuracy/"  # prefix of the figures per category


def tally(rows: Sequence[Mapping]) -> dict[str, float]:
    """The number of rows and the sum of their `correct` per category: keys `n/CATEGORY` and `correct/CATEGORY`."""
    sums: dict[str, float] = defaultdict(float)
    for row in rows:
        sums[f"n/{row['category']}"] += 1
        sums[f"correct/{row['category']}"] += float(row["score"]["correct"])
    return dict(sums)


def ratio(part, whole):
    """part / whole, elementwise; nan where the whole is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole == 0, np.nan, part / whole)[()]


def mean(values: Sequence):
    """The elementwise mean of the values that are not nan; nan where all are."""
    stacked = np.stack([np.asarray(value, dtype=float) for value in values])
    known = ~np.isnan(stacked)
    return ratio(np.where(known, stacked, 0.0).sum(0), known.sum(0))


def names(sums: Mapping, prefix: str = "n/") -> list[str]:
    """The categories: what follows `prefix` in the keys, sorted."""
    return sorted(key[len(prefix) :] for key in sums if key.startswith(prefix))


def accuracy(sums: Mapping) -> dict:
    """`accuracy` over all rows, `macro`, its mean over categories, and `accuracy/CATEGORY` from the sums of `tally`."""
    categories = names(sums)
    per = {name: ratio(sums[f"correct/{name}"], sums[f"n/{name}"]) for name in categories}
    whole = ratio(sum(sums[f"correct/{name}"] for name in categories), sum(sums[f"n/{name}"] for name in categories))
    return {"accuracy": whole, "macro": mean(list(per.values())), **{PER_CATEGORY + k: v for k, v in per.items()}}
