"""EVS, VidCom2, V-CAST and DyCoke on random clips, against the loops of `naive_video`; their counts; images.

No golden files exist for these methods, so the loops stand for the authors' code.
"""

import pytest
import torch

from tests import naive_video
from vtc.config.resolve import resolve
from vtc.core.budget import Budget
from vtc.core.errors import ConfigError
from vtc.core.signals import Context, Encoder, Features
from vtc.strategies import METHODS

ENCODER = Encoder("test", 4, False, (0, 1, 2, 3))
METHODS_OF_CLIPS = ("evs", "vidcom2", "v_cast", "dycoke")
every = pytest.mark.parametrize("method", METHODS_OF_CLIPS)
seeds = pytest.mark.parametrize(
    "seeds", [range(10), pytest.param(range(10, 120), marks=pytest.mark.full)], ids=["few", "many"]
)


def budget_of(method, share, **knobs):
    """What the strategy keeps at the projector."""
    return resolve(method, keep=share, **knobs).allocate().projector


def count_of(method, rows, share, **knobs):
    """Tokens kept of a clip [F][n][D]."""
    (counts,) = budget_of(method, share, **knobs).quotas([[len(frame) for frame in rows]], [True])
    return counts[0]


def select(method, rows, count, share=None, beside=(), **knobs):
    """The kept indices of one clip. beside: other clips of the same shape in the batch, before it."""
    features = torch.tensor([*beside, rows], dtype=torch.float64).flatten(1, 2)
    units, tokens = features.shape[:2]
    context = Context(
        tokens, count, None, tuple(range(units)), torch.device("cpu"), {Features(): features}, frames=len(rows),
        asked=share,
    )  # fmt: skip
    selection = METHODS[method](**knobs).select(context, ENCODER).check(tokens)
    return selection.row(units - 1).tolist()


@seeds
def test_evs_is_the_loop(seeds):
    for seed in seeds:
        rows, share, _ = naive_video.clip_of(seed)
        count = count_of("evs", rows, share)
        assert count == max(len(rows[0]), int(len(rows) * len(rows[0]) * share))
        assert select("evs", rows, count) == naive_video.evs(rows, count)


@seeds
def test_dycoke_is_the_loop(seeds):
    for seed in seeds:
        rows, share, _ = naive_video.clip_of(seed)
        count = count_of("dycoke", rows, share)
        assert count == max(-(-len(rows) // 4) * len(rows[0]), int(len(rows) * len(rows[0]) * share))
        assert select("dycoke", rows, count) == naive_video.dycoke(rows, count)


@seeds
def test_vidcom2_is_the_loop(seeds):
    """Both counts; the share as asked, and as the count gives it."""
    for seed in seeds:
        rows, share, _ = naive_video.clip_of(seed)
        tokens = len(rows) * len(rows[0])
        count = count_of("vidcom2", rows, share)
        assert count == max(len(rows), min(int(tokens * share), tokens))
        assert select("vidcom2", rows, count, share) == naive_video.vidcom2(rows, share, count)
        assert select("vidcom2", rows, count, share, counts="official") == naive_video.vidcom2(rows, share)
        if round(count / tokens * len(rows[0]) % 1, 6) != 0.5:  # where all frames are alike, rounding decides
            assert select("vidcom2", rows, count) == naive_video.vidcom2(rows, count / tokens, count)


@seeds
def test_v_cast_is_the_loop(seeds):
    compared = 0
    for seed in seeds:
        rows, share, _ = naive_video.clip_of(seed)
        for min_k in (1, 3):
            tokens, each = len(rows) * len(rows[0]), len(rows[0])
            count = count_of("v_cast", rows, share, min_k=min_k)
            least = tokens if len(rows) == 1 else len(rows) * min(min_k, each)
            assert count == max(least, min(tokens, max(1, round(tokens * share))))
            expected, close = naive_video.v_cast(rows, count, min_k)
            if not close:
                compared += 1
                assert select("v_cast", rows, count, min_k=min_k) == expected
    assert compared > len(seeds)


@every
def test_a_clip_chooses_as_if_it_were_alone(method):
    for seed in range(5):
        rows, share, _ = naive_video.clip_of(seed)
        others = [[[[x * (i + 2) + f for x in t] for t in frame] for f, frame in enumerate(rows)] for i in range(2)]
        count = count_of(method, rows, share)
        assert select(method, rows, count, share, others) == select(method, rows, count, share)


@every
def test_half_precision_is_computed_in_float32(method):
    """bfloat16 features give what the same numbers give in float32."""
    for seed in range(5):
        rows, share, _ = naive_video.clip_of(seed)
        count, x = count_of(method, rows, share), torch.tensor(rows).bfloat16().flatten(0, 1)[None]
        found = []
        for features in (x, x.float()):
            given = {Features(): features}
            context = Context(x.shape[1], count, None, (0,), torch.device("cpu"), given, frames=len(rows))
            found.append(METHODS[method]().select(context, ENCODER).keep.tolist())
        assert found[0] == found[1]


@every
def test_still_clips_keep_the_lower_indices(method):
    """Where every frame is the same, the tokens that are left over are those with the lower index."""
    rows = [naive_video.clip_of(0)[0][0]] * 9
    each = len(rows[0])
    kept = select(method, rows, 3 * each + 5)
    if method == "evs":
        assert kept == list(range(3 * each + 5))
    if method == "dycoke":
        assert kept == [f * each + i for f in range(9) for i in range(each if f % 4 == 0 else int(f < 7))]
    if method == "v_cast":
        assert {i // each for i in kept} == set(range(9))
    for f in range(8):  # what stays of a frame stays of the one before
        here, before = ({i % each for i in kept if i // each == g} for g in (f + 1, f))
        assert method == "dycoke" or here <= before


@every
def test_all_and_the_least(method):
    """Everything, in order; and the fewest tokens that the method keeps whatever is asked for."""
    rows, _, _ = naive_video.clip_of(5)
    frames, each = len(rows), len(rows[0])
    assert frames > 4
    assert select(method, rows, frames * each) == list(range(frames * each))
    least = count_of(method, rows, 1e-6)
    assert least == METHODS[method]().least(frames, each)
    assert least == {"evs": each, "vidcom2": frames, "v_cast": frames, "dycoke": -(-frames // 4) * each}[method]
    kept = select(method, rows, least)
    per_frame = [sum(i // each == f for i in kept) for f in range(frames)]
    if method == "evs":
        assert per_frame == [each] + [0] * (frames - 1)
    if method == "v_cast":
        assert per_frame == [1] * frames
    if method == "dycoke":
        assert per_frame == [each if f % 4 == 0 else 0 for f in range(frames)]


@pytest.mark.parametrize(
    ("method", "tokens", "keep", "kept"),
    [
        ("evs", [96] * 8, 0.25, 192), ("evs", [96] * 8, 0.05, 96), ("evs", [96] * 8, 0.3, 230),
        ("evs", [96] * 8, 7, 96),
        ("vidcom2", [96] * 8, 0.25, 192), ("vidcom2", [5] * 8, 0.05, 8), ("vidcom2", [97] * 3, 0.25, 72),
        ("v_cast", [97] * 3, 0.25, 73), ("v_cast", [5] * 8, 0.05, 8), ("v_cast", [97] * 2, 0.25, 48),
        ("dycoke", [196] * 32, 0.475, 2979), ("dycoke", [196] * 32, 0.1, 1568), ("dycoke", [196] * 5, 0.1, 392),
    ],
)  # fmt: skip
def test_published_counts(method, tokens, keep, kept):
    """Functions of sizes and budget alone; halves to even in V-CAST."""
    assert budget_of(method, keep).quotas([tokens], [True]) == [[kept]]


@pytest.mark.parametrize("method", ["evs", "v_cast", "dycoke"])
def test_images_stay_whole(method):
    """Methods that compare frames keep an image's tokens, of however many tiles, beside clips of the same prompt."""
    stage = METHODS[method]()
    assert stage.clips
    assert stage.least(1, 60) == 60
    assert stage.least(4, 60) < 240
    for keep in (0.3, 7):
        counts = budget_of(method, keep).quotas([[60], [20, 20], [60] * 4], [False, False, True])
        assert counts[:2] == [[60], [40]]
        assert counts[2][0] < 240
    image = [naive_video.clip_of(0)[0][0]]
    assert select(method, image, len(image[0])) == list(range(len(image[0])))


def test_an_image_is_a_clip_of_one_frame():
    """VidCom2 keeps of an image what it keeps of a clip of one frame."""
    assert not METHODS["vidcom2"].clips
    rows = [naive_video.clip_of(5)[0][0]]
    features = torch.tensor(rows, dtype=torch.float64)
    tokens = len(rows[0])
    context = Context(tokens, 5, (1, tokens), (0,), torch.device("cpu"), {Features(): features})
    kept = METHODS["vidcom2"]().select(context, ENCODER).keep[0].tolist()
    assert kept == naive_video.vidcom2(rows, 5 / tokens, 5)


def test_the_least_of_a_budget_holds_where_tiles_compete():
    """Of a number too, and not of frames that are chosen from one by one."""
    least = METHODS["vidcom2"]().least
    assert Budget(3, "per_clip", "floor", least).quotas([[10] * 8], [True]) == [[8]]
    assert Budget(3, "per_frame", "floor", least).quotas([[10] * 8], [True]) == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert Budget(0.01, "per_frame", "floor", least).quotas([[10] * 3], [True]) == [[1, 1, 1]]
    assert Budget(0.01, "per_clip", "floor", METHODS["evs"]().least).quotas([[10]] * 2, [True, False]) == [[10], [10]]


def test_bad_knobs():
    with pytest.raises(ConfigError, match="min_k=-1 is out of range; possible: 0 or more"):
        resolve("v_cast", min_k=-1)
    with pytest.raises(ConfigError, match="counts='most' is unknown; possible: exact, official"):
        resolve("vidcom2", counts="most")
