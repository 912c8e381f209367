"""SCOPE: the definition as a plain loop, with every knob, and what it reads on each family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive_sets import largest
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import AttentionColumns, ClsAttention, Encoder, EncoderFeatures, Features
from vtc.kernels.coverage import coverage_greedy
from vtc.strategies.scope import Scope, selection_order

CLIP = Encoder("llava", 24, True, tuple(range(24)), tokens=576)
QWEN = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31))


def plain(weights, quality, k, combine):
    """The picks of one unit: weights [R, N], quality [N]; every gain is taken anew in every step."""
    picks = []
    for _ in range(k):
        covered = weights[:, picks].amax(1) if picks else torch.zeros_like(weights[:, 0])
        gains = [(column - covered).clamp(min=0).sum() for column in weights.T]
        worth = [float(g * q if combine == "multi" else g + q) for g, q in zip(gains, quality, strict=True)]
        picks.append(largest(worth, [j for j in range(len(worth)) if j not in picks]))
    return picks


@settings(max_examples=80)
@given(
    units=st.integers(1, 3), n=st.integers(1, 30), rows=st.integers(1, 30), seed=st.integers(0, 10**6),
    combine=st.sampled_from(["multi", "add"]), method=st.sampled_from(["lazy", "dense"]), coarse=st.booleans(),
    data=st.data(),
)  # fmt: skip
def test_coverage_with_quality_is_the_plain_loop(units, n, rows, seed, combine, method, coarse, data):
    """Ties and qualities of 0 among them (`coarse`), up to picks that gain nothing."""
    k, generator = data.draw(st.integers(0, n)), torch.Generator().manual_seed(seed)
    weights, quality = torch.rand(units, n, rows, generator=generator), torch.rand(units, n, generator=generator)
    if coarse:
        weights, quality = (weights * 3).round(), (quality * 2).round()
    weights = weights.transpose(1, 2)
    found = coverage_greedy(weights, k, method=method, quality=quality, combine=combine)
    assert found.tolist() == [plain(w, q, k, combine) for w, q in zip(weights, quality, strict=True)]


def test_coverage_refuses_a_quality_that_does_not_fit():
    weights = torch.rand(1, 4, 5)
    with pytest.raises(ValueError, match=r"quality is torch.float32 \[1, 4\]; possible: floats \[1, 5\]"):
        coverage_greedy(weights, 2, quality=torch.rand(1, 4))
    with pytest.raises(ValueError, match="combine='sum'; possible: 'multi' or 'add'"):
        coverage_greedy(weights, 2, quality=torch.rand(1, 5), combine="sum")


def test_scale_of_saliency_counts_only_where_it_is_added():
    generator = torch.Generator().manual_seed(0)
    features, saliency = torch.randn(1, 40, 6, generator=generator), torch.rand(1, 40, generator=generator)
    order = {
        (c, s): selection_order(features, s * saliency, 20, 1.0, c).tolist() for c in ("multi", "add") for s in (1, 64)
    }
    assert order["multi", 1] == order["multi", 64]
    assert order["add", 1] != order["add", 64]
    flat = selection_order(features, torch.ones_like(saliency), 20)
    assert torch.equal(selection_order(features, saliency, 20, alpha=0.0), flat)


def test_tokens_of_length_zero_come_last():
    """They cover nothing; once all the others are picked, the lowest indices are left."""
    features = torch.eye(6)[None].clone()
    features[0, [1, 3]] = 0
    assert selection_order(features, torch.ones(1, 6), 6)[0].tolist() == [0, 2, 4, 5, 1, 3]


def test_what_it_reads():
    assert resolve("scope", "llava").projector.stage == Scope()
    assert resolve("scope", "llava").projector.stage.needs(CLIP) == (ClsAttention(22), EncoderFeatures())
    for family in ("qwen2_vl", "qwen2_5_vl"):
        stage = resolve("scope", family).projector.stage
        assert stage.needs(QWEN) == (AttentionColumns(31, "sum"), Features())
    assert resolve("scope", "llava_next", keep=162).allocate().projector.quotas([[576] * 5]) == [[32] * 5]
    with pytest.raises(ConfigError, match=r"alpha=-1\.0 is out of range; possible: an exponent of 0 or more"):
        resolve("scope", "llava", alpha=-1.0)
