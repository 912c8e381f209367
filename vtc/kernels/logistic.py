"""A logistic schedule over layers with a given sum: tokens kept after each layer, including merged ones.

Source: AutoPrune (NeurIPS 2025).
"""

from functools import lru_cache
from math import ceil, exp
from typing import NamedTuple

TOP = 0.75  # the curve before its fall
WIDEST, HALVINGS, CLOSE = 20.0, 200, 0.01  # of the search for the factor


class Curve(NamedTuple):
    """fractions: of the tokens after layer 0, for each layer from 1 on, merged ones not counted. counts: tokens after
    layers 0, 1, ..., merged ones counted."""

    fractions: tuple[float, ...]
    counts: tuple[int, ...]


def merged_count(pruned: int) -> int:
    """The number of merged tokens made from some of the pruned ones; SparseVLM's rule."""
    recycled = int(0.3 * pruned) + 1
    return min(recycled // 10 + 1, recycled) if pruned > 0 else 0


@lru_cache(maxsize=4096)
def curve(entered: int, first: int, slope: float, centre: float, layers: int, total: float) -> Curve:
    """The curve f_l = 0.75 / (1 + exp(slope * (l - centre - slope))) for l = 1..layers - 1, times the factor with which
    the counts after all `layers` come nearest to `total`.

    entered: tokens before layer 0. first: those after it. The curve stays as it is where its own sum is within 1 of the
    total. The factor is found by bisection in [0, 20]; the first one that comes nearest is taken.
    """
    shape = [TOP / (1 + exp(min(700.0, slope * (layer - centre - slope)))) for layer in range(1, layers)]
    last = int(first * shape[-1]) if shape else 0
    if abs(sum(int(first * f) for f in shape) + last - total) < 1:
        return Curve(tuple(shape), tuple(_counts(entered, first, shape)))
    low, high, best, error = 0.0, WIDEST, 0.0, float("inf")
    for _ in range(HALVINGS):
        factor = (low + high) / 2
        reached = sum(_counts(entered, first, [factor * f for f in shape]))
        if abs(reached - total) < error:
            best, error = factor, abs(reached - total)
        if error < CLOSE:
            break
        low, high = (factor, high) if reached < total else (low, factor)
    fractions = [best * f for f in shape]
    return Curve(tuple(fractions), tuple(_counts(entered, first, fractions)))


def plain_count(first: int, fraction: float) -> int:
    """Tokens kept at a fraction, not counting merged ones."""
    return ceil((first - 1) * min(1.0, fraction))


def _counts(entered: int, first: int, fractions: list[float]) -> list[int]:
    counts = [first]
    for fraction in fractions:
        keep = min(plain_count(first, fraction), entered)
        counts.append(keep + merged_count(counts[-1] - keep))
    return counts
