"""VFlowOpt: cells, recycling, entropy and counts by their definitions; scores that reach the language model."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc
from tests.helpers import forward, inputs_of, model_of, refused
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import Context, Decoder, Encoder, Extent, ImportantAttention, PatchEntropy
from vtc.kernels.entropy import grey_entropy
from vtc.kernels.important import important
from vtc.patches import FAMILIES
from vtc.strategies.vflowopt import VFlowOpt
from vtc.strategies.vflowopt_projector import VFlowOptProjector, cells_of, recycle

CLIP = Encoder("llava", 24, True, tuple(range(24)))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), cells=st.integers(1, 6), seed=st.integers(0, 10**6), data=st.data())
def test_recycling_by_definition(n, cells, seed, data):
    """The least important merge in their cells, in the place of the most important; two units as each alone."""
    number = data.draw(st.integers(0, n))
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(2, n, generator=generator, dtype=torch.float64)
    where = torch.randint(cells, (n,), generator=generator)
    features = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    found = recycle(importance, where, number)
    out = found.apply_features(features)
    for b in range(2):
        order = sorted(range(n), key=lambda i: (-float(importance[b, i]), i))
        stays, goes = order[: n - number], order[n - number :]
        expected = {i: (features[b, i], importance[b, i]) for i in stays}
        for cell in range(cells):
            mine = [i for i in goes if where[i] == cell]
            if mine:
                share = importance[b, mine] / importance[b, mine].sum()
                expected[mine[0]] = share @ features[b, mine], importance[b, mine[0]]
        kept = found.row(b).tolist()
        assert kept == sorted(expected)
        for slot, i in enumerate(kept):
            torch.testing.assert_close(out[b, slot], expected[i][0])
            assert found.score[b, slot] == expected[i][1]


def test_cells_of_one_raster_and_of_tiles():
    """Cells end where a multiple of a lies; the first of several tiles has its own, the others are one raster."""
    one = cells_of((Extent(5, 5, 0, 0),), 2.5).view(5, 5)
    assert one.tolist() == [[0, 0, 0, 1, 1]] * 3 + [[2, 2, 2, 3, 3]] * 2
    tiles = (Extent(2, 2, 0, 0), Extent(2, 2, 0, 0), Extent(2, 2, 0, 2))
    assert cells_of(tiles, 3.0).tolist() == [0] * 4 + [1] * 4 + [1, 2, 1, 2]


def test_a_cell_without_importance_merges_evenly():
    found = recycle(torch.zeros(1, 4), torch.tensor([0, 0, 1, 1]), 2)
    assert found.row(0).tolist() == [0, 1, 2]
    assert found.merge.weight[0].tolist() == [1, 1, 0.5, 0.5]


def test_important_ones():
    """More than t times the mean; where none is, the one with most, the first of them."""
    received = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.25] * 4])
    assert important(received, 1.1).tolist() == [[False, True, True, False], [True, False, False, False]]


def test_entropy():
    """Bits of the grey values; values outside 0 to 1 wrap around as in the released code, or the range is spread."""
    pixels = torch.zeros(2, 3, 4)
    pixels[1, :, 2:] = 1.0
    assert grey_entropy(pixels)[0] == pytest.approx(0, abs=1e-6)
    assert grey_entropy(pixels)[1] == pytest.approx(1, abs=1e-6)
    below = torch.full((1, 3, 2), -1 / 255)
    below[..., 1] = 1.0  # 255 both
    assert grey_entropy(below)[0] == pytest.approx(0, abs=1e-6)
    assert grey_entropy(below, released=False)[0] == pytest.approx(1, abs=1e-6)
    noise = torch.rand(1, 3, 500, generator=torch.Generator().manual_seed(0))
    grey = (0.3333 * (255 * noise).trunc().sum(1)).round().long()[0].tolist()
    share = [grey.count(v) / 500 for v in set(grey)]
    assert grey_entropy(noise)[0] == pytest.approx(-sum(p * math.log2(p) for p in share), abs=1e-4)


def test_published_counts():
    """The released 25 %: about 0.25 on average over 28 layers, each stage of what the one before left."""
    stage, decoder = VFlowOpt(), Decoder("qwen2_vl", 28)
    steps = stage.steps(decoder)
    assert [(s.layer, stage.count(590, s.share)) for s in steps] == [(9, 580), (18, 509)]
    assert stage.count(590, 0.5) == 295
    ours = resolve("vflowopt", "llava").decoder[0].stage
    assert [s.layer for s in ours.steps(Decoder("llava", 32))] == [10, 20]
    assert VFlowOptProjector().needs(CLIP) == (ImportantAttention(22, VFlowOptProjector().t),)
    assert VFlowOptProjector(alpha=0.1).needs(CLIP)[1:] == (PatchEntropy(),)


def test_entropy_counts_when_asked():
    """alpha changes what is kept, on every family, and importance goes along to the language model."""
    for case in (name for name in vtc.families() if "decoder" not in FAMILIES[name].refuses):
        model, inputs = model_of(case), inputs_of(case)
        kept = []
        for alpha in (0.0, 1e3):
            with vtc.patched(model, "vflowopt", a=4.0, alpha=alpha):
                forward(model, inputs)
                kept.append([step.kept.tolist() for image in vtc.report(model).images for step in image.steps])
        assert kept[0] != kept[1]


def test_all_that_may_stay_stays():
    stage = VFlowOptProjector(a=2.0)
    seen = Context(16, 16, (4, 4), (0,), torch.device("cpu"), {stage.needs(CLIP)[0]: torch.rand(1, 16)})
    found = stage.select(seen, CLIP)
    assert found.keep.tolist() == [list(range(16))]
    assert found.score is not None
    assert found.merge is None


@pytest.mark.parametrize("a", [1.0, 2.0, 3.5, 9.0])
@pytest.mark.parametrize("count", [1, 5, 20, 63])
def test_a_surplus_of_cells_never_exceeds_the_count(a, count):
    stage = VFlowOptProjector(a=a, surplus="cells")
    scores = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    found = stage.select(
        Context(64, count, (8, 8), (0, 1, 2), torch.device("cpu"), {stage.needs(CLIP)[0]: scores}), CLIP
    )
    assert all(1 <= len(found.row(b)) <= count for b in range(3))


def test_refusals():
    """Scores have to come from somewhere; knobs out of range."""
    model = model_of("llava")
    for strategy in (VFlowOpt(), "hiprune"):
        parts = [strategy] if strategy != "hiprune" else ["hiprune", VFlowOpt()]
        refused(
            lambda parts=parts: vtc.patch(model, parts), "vflowopt", "possible: vflowopt_projector", kind=ConfigError
        )
    for make, message in (
        (lambda: VFlowOptProjector(t=-1.0), "t=-1.0 is out of range; possible"),
        (lambda: VFlowOptProjector(a=0.5), "a=0.5 is out of range; possible"),
        (lambda: VFlowOpt(ratios=(0.0, 1.0)), r"ratios=\[0.0, 1.0\] is out of range; possible"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
