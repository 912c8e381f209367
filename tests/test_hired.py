"""HiRED: whose part of the picture a tile is, how the budget is divided, and what rounding loses."""

import pytest
import torch

from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import ClsAttention, Context, Encoder, Extent
from vtc.patches.llava_next import anyres_tiles
from vtc.strategies.hired import HiRED, region_of, tile_budgets

NEXT = Encoder("llava_next", 24, True, tuple(range(24)), tiled=True)
DEEP, EARLY = ClsAttention(22), ClsAttention(0)
SQUARE = tuple(Extent(4, 4, *corner) for corner in ((0, 0), (0, 0), (0, 4), (4, 0), (4, 4)))


def context(tiles, count, seed=0, units=2):
    generator, tokens = torch.Generator().manual_seed(seed), sum(t.tokens for t in tiles)
    signals = {signal: torch.rand(units, tokens, generator=generator) for signal in (DEEP, EARLY)}
    return Context(tokens, count, None, tuple(range(units)), torch.device("cpu"), signals, tiles=tiles)


def counts(selection, tiles):
    """Tokens kept of each tile, of each unit."""
    bounds = torch.tensor([t.tokens for t in tiles]).cumsum(0)
    return [torch.bincount(torch.bucketize(row, bounds, right=True), minlength=len(tiles)).tolist()
            for row in map(selection.row, range(len(selection.keep)))]  # fmt: skip


def test_regions_of_a_square_tiling():
    """The code's strips are rows of the raster; the paper's regions are quadrants."""
    assert region_of(SQUARE, "strips").view(4, 4).tolist() == [[i] * 4 for i in range(4)]
    assert region_of(SQUARE, "spatial").view(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


def test_regions_follow_what_is_left_of_a_padded_tiling():
    """Of two tiles above each other the upper one, most of it padding, stands for the smaller part of the picture."""
    _, tiles = anyres_tiles((700, 800), (2, 2), 24)
    tiles = tuple(t.extent for t in tiles)
    assert [(t.top, t.left) for t in tiles[1:]] == [(0, 0), (0, 24), (tiles[1].rows, 0), (tiles[1].rows, 24)]
    uneven = (Extent(4, 4, 0, 0), Extent(2, 4, 0, 0), Extent(6, 4, 2, 0))
    assert region_of(uneven, "spatial").view(4, 4).tolist() == [[0] * 4] + [[1] * 4] * 3


def test_budgets_by_hand():
    """Parts of 3 : 1 of 10 tokens round down; none without weight are equal; no tile gives more than it has."""
    tiles = (Extent(2, 2, 0, 0), Extent(2, 2, 0, 0), Extent(2, 2, 2, 0))
    weight = torch.tensor([[1.0, 0.5, 0.25, 0.25], [0, 0, 0, 0], [1, 1, 0, 0]])
    assert tile_budgets(weight, tiles, 7, "strips").tolist() == [[4, 1], [3, 3], [4, 0]]


@pytest.mark.parametrize("score", ["count", "attention"])
@pytest.mark.parametrize("region", ["strips", "spatial"])
def test_what_rounding_loses(score, region):
    """At most the budget stays, the first tile's part exactly; remainder=best adds the best of the rest to the same."""
    for seed in range(20):
        seen = context(SQUARE, 31, seed)
        lost = HiRED(score=score, region=region).select(seen, NEXT)
        best = HiRED(score=score, region=region, remainder="best").select(seen, NEXT)
        assert best.keep.shape == (2, 31)
        assert best.valid is None
        for b, found in enumerate(counts(lost, SQUARE)):
            kept, more = set(lost.row(b).tolist()), set(best.keep[b].tolist())
            assert found[0] == 15
            assert 28 <= len(kept) <= 31
            assert kept <= more
            rest = seen[DEEP][b][[i for i in range(80) if i not in more]]
            assert all(seen[DEEP][b][i] >= rest.max() for i in more - kept)
            alone = Context(80, 31, None, (0,), seen.device, {s: x[b : b + 1] for s, x in seen.signals.items()},
                            tiles=SQUARE)  # fmt: skip
            assert HiRED(score=score, region=region).select(alone, NEXT).row(0).tolist() == lost.row(b).tolist()


def test_the_forms_differ():
    """Paper and code, count and attention give different budgets on the same picture."""
    weight = torch.rand(1, 80, generator=torch.Generator().manual_seed(4)) ** 8
    signals = {DEEP: torch.rand(1, 80), EARLY: weight}
    seen = Context(80, 40, None, (0,), torch.device("cpu"), signals, tiles=SQUARE)
    forms = [(s, r) for s in ("count", "attention") for r in ("strips", "spatial")]
    found = {tuple(counts(HiRED(score=s, region=r).select(seen, NEXT), SQUARE)[0]) for s, r in forms}
    assert len(found) == 4


def test_one_tile_and_all_tokens():
    """One tile needs no early layer; a budget of all keeps all."""
    clip = Encoder("llava", 24, True, tuple(range(24)))
    assert HiRED().needs(clip) == (DEEP,)
    assert HiRED().needs(NEXT) == (DEEP, EARLY)
    assert HiRED().select(context(SQUARE, 80), NEXT).keep.shape == (2, 80)
    assert resolve("hired", "llava").allocate().projector.count(576) == 115
    with pytest.raises(ConfigError, match="alpha=2 is out of range; possible"):
        HiRED(alpha=2)
