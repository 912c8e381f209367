"""FlashVID on random clips, against the loops of `naive_flashvid`: kept tokens, merged features, counts, knobs.

No golden file exists for it, so the loops stand for the authors' code.
"""

import math
import random

import pytest
import torch

from tests import naive_flashvid, naive_video
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Decoder, Encoder, Features
from vtc.strategies.flashvid import FlashVID

ENCODER = Encoder("test", 4, False, (0, 1, 2, 3))
SIGNAL = AttentionColumns(2)
seeds = pytest.mark.parametrize(
    "seeds", [range(10), pytest.param(range(10, 70), marks=pytest.mark.full)], ids=["few", "many"]
)


def clip(seed):
    """A clip in which the tokens of a frame differ, its attention [F][n], and its share."""
    rows, share, kind = naive_video.clip_of(seed if seed % 5 < 4 else 5 * seed + 1)
    draw = random.Random(seed)
    return rows, [[draw.random() for _ in frame] for frame in rows], share


def select(rows, attention, count, share=None, **knobs):
    """The kept tokens of a clip and their features."""
    features = torch.tensor([rows], dtype=torch.float64).flatten(1, 2)
    signals = {Features(): features, SIGNAL: torch.tensor([attention], dtype=torch.float64).flatten(1)}
    tokens = features.shape[1]
    context = Context(
        tokens, count, None, (0,), torch.device("cpu"), signals, frames=len(rows), asked=share
    )  # fmt: skip
    selection = FlashVID(**knobs).select(context, ENCODER).check(tokens)
    kept = selection.row(0)
    return kept.tolist(), selection.apply_features(features)[0, : len(kept)]


def compared(rows, found, expected):
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], torch.tensor(expected[1], dtype=torch.float64), atol=1e-7, rtol=0)


@seeds
def test_exact_counts_are_the_loop(seeds):
    """With knobs by which trees, clusters and segments all occur."""
    for seed in seeds:
        rows, attention, share = clip(seed)
        draw, frames, each = random.Random(seed), len(rows), len(rows[0])
        count = max(frames, math.ceil(frames * each * share))
        budgets = [count // frames + (f < count % frames) for f in range(frames)]
        least, part, link = draw.choice((1, 2, 8)), draw.choice((0.7, 0.3, 0.0)), draw.choice((0.8, 0.3))
        released = draw.random() < 0.5
        found = select(
            rows, attention, count, segments=least, distinct=part, link=link,
            trees="released" if released else "mean", cut=-1.0 if seed % 2 else 0.9,
        )  # fmt: skip
        assert len(found[0]) == count
        cut = -1.0 if seed % 2 else 0.9
        compared(rows, found, naive_flashvid.flashvid(rows, attention, budgets, cut, least, part, link, released))


@seeds
def test_official_counts_are_the_loop(seeds):
    """Every frame's part of the budget, and its clusters, are rounded up."""
    for seed in seeds:
        rows, attention, share = clip(seed)
        frames, each = len(rows), len(rows[0])
        budgets = [math.ceil(each * share)] * frames
        found = select(rows, attention, frames, share, segments=2, distinct=0.3, link=0.5, counts="official")
        expected = naive_flashvid.flashvid(rows, attention, budgets, 0.9, 2, 0.3, 0.5, True, False)
        compared(rows, found, expected)
        assert len(found[0]) >= min(frames * each, sum(budgets))


def test_a_still_clip_is_one_frame():
    """Its tokens link through all frames; "mean" leaves them as they are, "released" lets them grow."""
    frame = naive_video.clip_of(0)[0][0]
    each = len(frame)
    rows, attention = [frame] * 4, [[1.0] * each] * 4
    kept, features = select(rows, attention, each, segments=1, distinct=0.0, trees="mean")
    assert kept == list(range(each))
    torch.testing.assert_close(features, torch.tensor(frame, dtype=torch.float64))
    kept, features = select(rows, attention, each, segments=1, distinct=0.0)
    assert kept == list(range(each))
    torch.testing.assert_close(features, 2 * torch.tensor(frame, dtype=torch.float64))  # four tokens, one linked to it


def test_all_stays_as_it_is():
    rows, attention, _ = clip(0)
    tokens = len(rows) * len(rows[0])
    kept, features = select(rows, attention, tokens)
    assert kept == list(range(tokens))
    assert torch.equal(features, torch.tensor(rows, dtype=torch.float64).flatten(0, 1))


def test_signals_and_budget():
    """The attention of [CLS] where there is one; windowed encoders' last layer; at least one token of each frame."""
    cls = Encoder("test", 4, True, (0, 1, 2, 3))
    assert FlashVID().needs(cls) == (ClsAttention(2), Features())
    assert resolve("flashvid", "qwen2_5_vl").projector.stage.needs(ENCODER)[0] == AttentionColumns(3)
    assert resolve("flashvid", keep=0.01).allocate().projector.quotas([[9] * 5], [True]) == [[5]]


def test_with_fastv_the_mean_over_layers_is_the_published_share():
    config = resolve("flashvid_fastv")
    allocation = config.allocate(Decoder("test", 28), 640)
    per_layer = allocation.tokens_per_layer(640, allocation.entered(640))
    assert per_layer == [200] * 20 + [60] * 8
    assert sum(per_layer) / 28 == 160 == 0.25 * 640


def test_bad_knobs():
    for knob, value in (("segments", 0), ("distinct", 1.5), ("cut", 2.0), ("link", -2.0)):
        with pytest.raises(ConfigError, match=f"{knob}={value} is out of range; possible: "):
            resolve("flashvid", **{knob: value})
