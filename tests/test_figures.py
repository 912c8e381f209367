"""Figures from sums: what is unknown stays out of means, as a number and over replicates."""

import math

import numpy as np
import pytest

from vtc.eval.metrics.aggregate import accuracy, mean


def test_mean_of_what_is_known():
    """Elementwise; of nothing known it is unknown."""
    assert mean([0.5, math.nan, 1.0]) == 0.75
    assert math.isnan(mean([math.nan, math.nan]))
    found = mean([np.array([1.0, math.nan, math.nan]), np.array([0.0, 0.25, math.nan])])
    assert found.tolist() == pytest.approx([0.5, 0.25, math.nan], nan_ok=True)


def test_macro_leaves_out_categories_that_were_not_drawn():
    """A replicate may lack a category; its macro is the mean over the others, and never lower for it."""
    sums = {"n/a": [4, 2], "correct/a": [2, 1], "n/b": [2, 0], "correct/b": [2, 0]}
    found = accuracy({name: np.array(values, dtype=float) for name, values in sums.items()})
    assert found["macro"].tolist() == [0.75, 0.5]
    assert found["accuracy"].tolist() == pytest.approx([4 / 6, 0.5])
    assert found["accuracy/b"].tolist() == pytest.approx([1.0, math.nan], nan_ok=True)
