"""HoloV: quotas and picks as plain loops, the surplus, and what it reads on each family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, Features
from vtc.kernels.groups import fill, take
from vtc.strategies.holov import HoloV, allocation

CLIP = Encoder("llava", 24, True, tuple(range(24)), tokens=576)
QWEN = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31))


def run(stage, features, attention, count):
    signals = dict(zip(stage.needs(CLIP), (attention, features), strict=True))
    units, tokens = attention.shape
    return stage.select(Context(tokens, count, None, tuple(range(units)), torch.device("cpu"), signals), CLIP)


@settings(max_examples=60)
@given(n=st.integers(1, 40), crops=st.integers(1, 12), seed=st.integers(0, 10**6), data=st.data())
def test_picks_are_the_best_of_each_crop(n, crops, seed, data):
    """As many of each crop as its quota, best first; with the surplus handed on exactly `count`, else those alone."""
    count, generator = data.draw(st.integers(1, n)), torch.Generator().manual_seed(seed)
    features, attention = torch.randn(1, n, 4, generator=generator), torch.rand(1, n, generator=generator) ** 8
    stage = HoloV(crops=crops)
    scores, sizes = stage.scores(features[0], attention[0], count)
    assert sizes.tolist() == [n // min(crops, n) + (i < n % min(crops, n)) for i in range(min(crops, n))]
    wanted = allocation(scores, count)
    released = run(HoloV(crops=crops, surplus="released"), features, attention, count).row(0).tolist()
    kept = run(stage, features, attention, count).keep[0].tolist()
    assert len(kept) == count
    start, left = 0, count - int(torch.minimum(wanted, sizes).sum())
    extra = dict.fromkeys(range(len(sizes)), 0)
    for crop in sorted(range(len(sizes)), key=lambda c: (-float(scores[c]), c)):
        extra[crop] = min(left, max(0, int(sizes[crop] - wanted[crop])))
        left -= extra[crop]
    for crop, size in enumerate(sizes.tolist()):
        mine = sorted(range(start, start + size), key=lambda i: (-float(attention[0, i]), i))
        quota = min(int(wanted[crop]), size)
        assert [i for i in released if i in mine] == sorted(mine[:quota])
        assert [i for i in kept if i in mine] == sorted(mine[: quota + extra[crop]])
        start += size


def test_the_variance_counts_where_some_crop_has_none():
    """Crops of equal attention get equal parts; one whose cosines do not vary lacks the second term."""
    attention = torch.ones(1, 20)
    features = torch.randn(1, 20, 6, generator=torch.Generator().manual_seed(0))
    stage = HoloV(crops=2, alpha=1.0)
    even, _ = stage.scores(features[0], attention[0], 10)
    torch.testing.assert_close(even, torch.tensor([2000.0, 2000.0]), rtol=1e-3, atol=0)
    features[0, :10] = 0
    uneven, _ = stage.scores(features[0], attention[0], 10)
    torch.testing.assert_close(uneven, torch.tensor([1000.0, 2000.0]), rtol=1e-3, atol=0)
    kept = run(stage, features, attention, 9).keep[0]
    assert int((kept < 10).sum()) == 3


def test_equal_crops_the_first_is_first():
    assert allocation(torch.ones(4), 6).tolist() == [2, 2, 1, 1]
    assert fill(
        torch.tensor([0, 1, 1]), torch.tensor([2, 1, 4]), torch.tensor([1, 0, 2]), torch.tensor(4)
    ).tolist() == [
        2,
        1,
        3,
    ]
    indices, counts = take(torch.tensor([4, 0, 2, 1, 3]), torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 1]), 3)
    assert indices[counts].tolist() == [0, 4]


def test_what_it_reads():
    assert resolve("holov", "llava").projector.stage == HoloV()
    assert HoloV().needs(CLIP) == (ClsAttention(22), Features())
    stage = resolve("holov", "qwen2_vl").projector.stage
    assert stage.needs(QWEN) == (AttentionColumns(31, "mean"), Features())
    features, attention = torch.randn(576, 4), torch.rand(576)
    assert len(stage.scores(features, attention, 64)[0]) == 16
    assert len(stage.scores(features, attention, 576)[0]) == 1
    for knobs, message in (({"crops": 0}, "crops=0 is out of range"), ({"alpha": -0.1}, "alpha=-0.1 is out of range")):
        with pytest.raises(ConfigError, match=message):
            resolve("holov", "llava", **knobs)
