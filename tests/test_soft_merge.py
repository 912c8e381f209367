"""Soft merging: its two limits, and that nothing is lost over layers."""

import pytest
import torch

from vtc.core.selection import Selection
from vtc.kernels.matching import best_partners
from vtc.strategies.soft_merge import weights

UNITS, N, K = 3, 40, 12


@pytest.fixture
def given():
    """keys [B, N, e], kept tokens [B, K], sizes [B, N], features [B, N, D]."""
    g = torch.Generator().manual_seed(0)
    keep = torch.rand(UNITS, N, generator=g).argsort(1)[:, :K].sort(1).values
    size = torch.randint(1, 5, (UNITS, N), generator=g).double()
    return torch.randn(UNITS, N, 8, generator=g).double(), keep, size, torch.randn(UNITS, N, 5, generator=g).double()


def test_sharp_rows_are_pruning(given):
    keys, keep, size, x = given
    mix, held = weights(keys, keep, size, 1e6, "row")
    torch.testing.assert_close(Selection(keep, mix=mix).apply_features(x), Selection(keep).apply(x))
    assert bool((held == 1).all())


def test_flat_rows_are_the_mean(given):
    keys, keep, size, x = given
    mix, _ = weights(keys, keep, size, 0.0, "row")
    torch.testing.assert_close(Selection(keep, mix=mix).apply_features(x), x.mean(1, keepdim=True).expand(-1, K, -1))


def test_sharp_columns_are_exclusive_merging_with_sizes(given):
    keys, keep, size, x = given
    mix, held = weights(keys, keep, size, 1e6, "column")
    _, partner = best_partners(keys, torch.arange(N).expand(UNITS, -1), keep)
    assert torch.equal(partner.gather(1, keep), torch.arange(K).expand(UNITS, -1))
    total = torch.zeros(UNITS, K).double().scatter_add_(1, partner, size)
    torch.testing.assert_close(held, total)
    summed = torch.zeros(UNITS, K, 5).double()
    summed.scatter_add_(1, partner.unsqueeze(-1).expand(-1, -1, 5), x * size.unsqueeze(-1))
    torch.testing.assert_close(Selection(keep, mix=mix).apply_features(x), summed / total.unsqueeze(-1))


@pytest.mark.parametrize("tau", [0.0, 3.0, 30.0])
def test_columns_lose_nothing_over_layers(given, tau):
    """Sizes sum to what they did, and so does size times feature, after two layers; weights are means."""
    keys, keep, size, x = given
    first, held = weights(keys, keep, size, tau, "column")
    y = Selection(keep, mix=first).apply_features(x)
    again = torch.arange(0, K, 2).expand(UNITS, -1)
    second, last = weights(keys.gather(1, keep.unsqueeze(-1).expand(-1, -1, 8)), again, held, tau, "column")
    z = Selection(again, mix=second).apply_features(y)
    for mix in (first, second):
        assert bool((mix >= 0).all())
        torch.testing.assert_close(mix.sum(2), torch.ones(mix.shape[:2]).double())
    torch.testing.assert_close(last.sum(1), size.sum(1))
    torch.testing.assert_close((z * last.unsqueeze(-1)).sum(1), (x * size.unsqueeze(-1)).sum(1))


def test_a_token_flows_to_its_largest_share(given):
    keys, keep, size, _ = given
    mix, _ = weights(keys, keep, size, 30.0, "column")
    target = Selection(keep, mix=mix).targets(N)
    assert torch.equal(target.gather(1, keep), torch.arange(K).expand(UNITS, -1))
    gone = torch.ones(UNITS, N, dtype=torch.bool).scatter(1, keep, False)
    assert torch.equal(target[gone], mix.argmax(1)[gone])
