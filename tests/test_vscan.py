"""VScan: windows and picks as plain loops, averages, published counts, and what it reads on each family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.config.allocation import Allocation
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import AttentionColumns, ClsAttention, Decoder, Encoder, Features
from vtc.strategies.vscan_projector import VScanProjector, averaged, local_picks, windows

CLIP = Encoder("llava", 24, True, tuple(range(24)), tokens=576)
QWEN = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31))


def test_windows():
    """Whole windows where they fit; what is left over belongs to the last."""
    assert windows((4, 6), 2).view(4, 6)[::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert windows((5, 3), 2).view(5, 3).tolist() == [[0] * 3] * 2 + [[1] * 3] * 3
    assert windows((2, 3), 6).tolist() == [0] * 6
    assert torch.bincount(windows((24, 24), 6)).tolist() == [36] * 16


@settings(max_examples=60)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), size=st.integers(1, 4), seed=st.integers(0, 10**6),
    rule=st.sampled_from(["each", "capped"]), data=st.data(),
)  # fmt: skip
def test_local_picks_are_the_plain_loop(rows, columns, size, seed, rule, data):
    """Ties included; units of a batch choose alike."""
    window, count = windows((rows, columns), size), data.draw(st.integers(0, rows * columns))
    attention = (torch.rand(2, rows * columns, generator=torch.Generator().manual_seed(seed)) * 5).floor()
    number = int(window.max()) + 1
    for values, found in zip(attention, local_picks(attention, window, count, rule), strict=True):
        taken = dict.fromkeys(range(number), 0)
        picks, cap = [], count // number if rule == "each" else -(-count // number)
        for i in sorted(range(len(values)), key=lambda i: (-float(values[i]), i)):
            if taken[int(window[i])] < cap and (rule == "each" or len(picks) < count):
                taken[int(window[i])] += 1
                picks.append(i)
        assert found.nonzero().flatten().tolist() == sorted(picks)


def test_averages():
    """A kept token is the mean of itself and those most like it; the first of equals is joined."""
    features = torch.tensor([[[1.0, 0], [0, 1], [3, 0.1], [0, 5], [2, 2]]], dtype=torch.float64)
    keep = torch.tensor([[0, 1]])
    merge = averaged(features, keep)
    assert merge.target.tolist() == [[0, 1, 0, 1, 0]]
    out = Selection(keep, merge=merge).apply_features(features)
    expected = torch.stack([features[0, [0, 2, 4]].mean(0), features[0, [1, 3]].mean(0)])
    torch.testing.assert_close(out[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("strategy", "count"), [({}, 96), ({"vscan_projector.keep": 288}, 288), ({"keep": 64}, 96)])
def test_published_counts(strategy, count):
    """96 tokens enter and 32 are left after layer 16, 64 on average."""
    schedule = Allocation(resolve("vscan", "llava", **strategy), Decoder("llava", 32))
    assert schedule.projector.count(576) == count
    assert [(step.layer, n) for step, n in zip(schedule.steps, schedule.counts(576, count), strict=True)] == [
        (16, count // 3)
    ]
    qwen = Allocation(resolve("vscan", "qwen2_5_vl"), Decoder("qwen2_5_vl", 28))
    assert (qwen.projector.count(1000), qwen.steps[0].layer) == (166, 14)


def test_what_it_reads():
    stage = resolve("vscan", "llava").projector.stage
    assert stage == VScanProjector()
    assert stage.needs(CLIP) == (ClsAttention(5), ClsAttention(22), Features())
    stage = resolve("vscan", "qwen2_vl").projector.stage
    assert stage.needs(QWEN) == (AttentionColumns(6, "mean"), AttentionColumns(31, "mean"), Features())
    assert (stage.window, stage.local) == (4, "capped")
    for knobs, message in (({"window": 0}, "window=0 is out of range"), ({"ratio": 0.0}, "ratio=0.0 is out of range")):
        with pytest.raises(ConfigError, match=message):
            resolve("vscan", "llava", **knobs)
