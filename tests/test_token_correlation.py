"""Token correlation, whose constants are ours: properties, and both branches by their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.core.errors import ConfigError
from vtc.core.signals import Context, Encoder, Extent
from vtc.strategies.token_correlation import TokenCorrelation, high_outliers, information

CLIP = Encoder("llava", 24, True, tuple(range(24)))
examples = settings(max_examples=40, deadline=None)


def context(stage, tokens, count, seed=0, tiles=(), units=2):
    generator = torch.Generator().manual_seed(seed)
    deep, low = (torch.randn(units, tokens, generator=generator).mul(2).softmax(1) for _ in range(2))
    keys = torch.randn(units, tokens, 6, generator=generator)
    keys[:, ::3] = keys[:, :1] + 0.01 * keys[:, ::3]  # a third of them alike
    signals = dict(zip(stage.needs(CLIP), (deep, low, keys), strict=True))
    return Context(tokens, count, None, tuple(range(units)), torch.device("cpu"), signals, tiles=tiles)


@examples
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6), iqr=st.sampled_from([0.0, 0.5, 1.5]))
def test_branches_by_definition(n, seed, iqr):
    """Outliers above the fence; as many by attention as are not redundant."""
    stage = TokenCorrelation(iqr=iqr, limit=2)
    seen = context(stage, n, n, seed)
    deep, low, keys = (seen[signal] for signal in stage.needs(CLIP))
    outlier, sampled = stage.branches(deep, low, keys, (0, 1))
    for b in range(2):
        first, third = (float(torch.quantile(deep[b].double(), q)) for q in (0.25, 0.75))
        fence = third + iqr * (third - first)
        assert all(bool(outlier[b, i]) == (float(deep[b, i]) > fence) for i in range(n)
                   if abs(float(deep[b, i]) - fence) > 1e-7)  # fmt: skip
        cosine = torch.cosine_similarity(keys[b][:, None], keys[b][None], dim=-1)
        redundant = [sum(float(cosine[i, j]) > 0.9 for j in range(n) if j != i) > 2 for i in range(n)]
        number = n - sum(redundant)
        best = sorted(range(n), key=lambda i: (-float(low[b, i]), i))[:number]
        assert sampled[b].nonzero().flatten().tolist() == sorted(best)


@examples
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6), sampling=st.sampled_from(["top", "random"]), data=st.data())
def test_selection(n, seed, sampling, data):
    """The union, no more than the count, outliers before samples; each unit as if it were alone; repeatable."""
    count = data.draw(st.integers(1, n))
    stage = TokenCorrelation(limit=2, sampling=sampling)
    seen = context(stage, n, count, seed)
    found, again = stage.select(seen, CLIP), stage.select(seen, CLIP)
    assert torch.equal(found.keep, again.keep)
    outlier, sampled = stage.branches(*(seen[signal] for signal in stage.needs(CLIP)), (0, 1))
    for b in range(2):
        kept, union = found.row(b), (outlier | sampled)[b].nonzero().flatten()
        assert 1 <= len(kept) <= count
        assert set(kept.tolist()) <= set(union.tolist()) or not len(union)
        if len(union) <= count and len(union):
            assert torch.equal(kept, union)
        elif len(union):
            assert len(kept) == count
            assert not (sampled & ~outlier)[b, kept].any() or outlier[b, kept].sum() == outlier[b].sum()
    last = {signal: x[1:] for signal, x in seen.signals.items()}
    alone = stage.select(Context(n, count, None, (1,), seen.device, last), CLIP)
    assert torch.equal(alone.row(0), found.row(1))


def test_the_whole_picture_stays_whole():
    """Of several tiles each is compressed by itself, and the first not at all."""
    tiles = (Extent(4, 4, 0, 0), Extent(4, 4, 0, 0), Extent(4, 4, 0, 4))
    stage = TokenCorrelation(limit=2)
    seen = context(stage, 48, 48, 3, tiles)
    kept = stage.select(seen, CLIP)
    deep, low, keys = (seen[signal] for signal in stage.needs(CLIP))
    for b in range(2):
        expected = list(range(16))
        for start in (16, 32):
            part = slice(start, start + 16)
            outlier, sampled = stage.branches(deep[:, part], low[:, part], keys[:, part], (0, 1))
            expected += ((outlier | sampled)[b].nonzero().flatten() + start).tolist()
        assert kept.row(b).tolist() == expected
        assert len(expected) < 48


def test_sampling_follows_its_seed_and_its_weights():
    """Other seeds draw others; what has all the weight is always drawn."""
    stages = [TokenCorrelation(sampling="random", iqr=100.0, limit=2, seed=seed) for seed in (0, 1)]
    one, other = (stage.select(context(stage, 60, 60), CLIP).row(0).tolist() for stage in stages)
    assert one != other
    low = torch.full((1, 30), 1e-9)
    low[0, 7] = 1.0
    keys = torch.ones(1, 30, 4)
    keys[0, 0] = -1
    for seed in range(20):
        drawn = TokenCorrelation(sampling="random", limit=2, seed=seed).branches(low, low, keys, (0,))[1]
        assert drawn[0].nonzero().flatten().tolist() == [7]


def test_parts_at_the_edges():
    assert not high_outliers(torch.ones(1, 5), 1.5).any()
    assert information(torch.ones(1, 5, 3), 0.9, 4).tolist() == [5]
    assert information(torch.ones(1, 5, 3), 0.9, 3).tolist() == [0]


@pytest.mark.parametrize("knob", [{"iqr": -1.0}, {"similarity": 1.5}, {"limit": -1}])
def test_wrong_knobs_are_refused(knob):
    with pytest.raises(ConfigError, match=f"{next(iter(knob))}=.* is out of range; possible"):
        TokenCorrelation(**knob)
