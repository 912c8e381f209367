"""Bipartite matching and energy: the reference against a plain definition, and Triton against the reference."""

import pytest
import torch

import vtc.kernels.matching.reference as reference
from tests.helpers_triton import DEVICE, DTYPES, both
from vtc.kernels.matching import best_partners, energy

SHAPES = [(1, 1, 1), (2, 33, 5), (3, 64, 40), (1, 130, 96)]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def sets(units, tokens):
    """Two sets of places, each in an order of its own."""
    order = torch.rand(units, tokens, generator=torch.Generator().manual_seed(1)).argsort(1).to(DEVICE)
    return order[:, : tokens // 2], order[:, tokens // 2 :]


def naive(metric):
    """All cosines [B, N, N] in float64."""
    unit = torch.nn.functional.normalize(metric.double(), dim=2)
    return unit @ unit.transpose(1, 2)


@pytest.mark.parametrize("units, tokens, width", SHAPES)
@pytest.mark.parametrize("block", [reference.BLOCK, 50])
def test_the_reference_is_the_definition(units, tokens, width, block, monkeypatch):
    """Whatever the blocks."""
    monkeypatch.setattr(reference, "BLOCK", block)
    metric, (first, second) = draw(units, tokens, width), sets(units, tokens)
    cosines = naive(metric)
    score, place = reference.best_partners(metric, first, second)
    for b in range(units):
        best = cosines[b][first[b]][:, second[b]].max(1) if first.shape[1] else None
        if best is not None:
            torch.testing.assert_close(score[b].double(), best.values, atol=1e-6, rtol=0)
            assert torch.equal(place[b], best.indices)
    z = cosines - 0.3
    expected = torch.where(z > 0, z, 0.7 * (z.exp() - 1)).mean(2)
    torch.testing.assert_close(reference.energy(metric, 0.3, 0.7).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("units, tokens, width", SHAPES)
def test_triton_equals_the_reference(units, tokens, width, dtype, poisoned):
    metric, (first, second) = draw(units, tokens, width, dtype=dtype), sets(units, tokens)
    (score, place), (found, where) = both(lambda: best_partners(metric, first, second))
    torch.testing.assert_close(found, score, atol=1e-5, rtol=0)
    assert torch.equal(where, place)
    expected, mine = both(lambda: energy(metric, 0.2, 1.0))
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)


def test_the_first_of_equals_wins(poisoned):
    """Also where they lie in different tiles, and a vector of length 0 is like none."""
    metric = draw(1, 1, 8).expand(1, 90, 8).clone()
    metric[0, 3] = 0
    first, second = torch.arange(4, device=DEVICE)[None], torch.arange(10, 90, device=DEVICE)[None]
    metric[0, 10] = -metric[0, 10]
    for score, place in both(lambda: best_partners(metric, first, second)):
        assert place.tolist() == [[1, 1, 1, 0]]
        assert score[0, 3] == 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="metric must be"):
        best_partners(torch.zeros(2, 3), torch.zeros(2, 1).long(), torch.zeros(2, 1).long())
    with pytest.raises(ValueError, match="second is empty"):
        best_partners(torch.zeros(1, 3, 2), torch.zeros(1, 1).long(), torch.zeros(1, 0).long())
    with pytest.raises(ValueError, match="metric must be"):
        energy(torch.zeros(2, 3), 0.1)
