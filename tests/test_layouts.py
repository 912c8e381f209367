"""Where visual tokens come from: LLaVA-NeXT's packing and Qwen2.5-VL's windows against transformers' own code."""

import inspect
import random

import pytest
import torch

from tests.helpers import model_of
from tests.test_signals import window_order
from vtc.patches.llava_next import anyres_tiles
from vtc.patching import find_family

MARK = -7.0
SIZES = [(24, 48), (48, 24), (48, 48), (40, 44), (50, 20), (48, 33), (17, 96), (96, 17), (1, 1), (200, 199), (5, 300)]
GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def packed(model, sizes, side, crops):
    """transformers' packing of features that say (crop, patch), newlines marked."""
    features, first = [], 0
    for count in crops:
        crop = torch.arange(first, first + count).view(-1, 1, 1).expand(-1, side * side, 1)
        patch = torch.arange(side * side).view(1, -1, 1).expand(count, -1, 1)
        features.append(torch.cat([crop, patch], 2).float())
        first += count
    parameters = inspect.signature(model.model.pack_image_features).parameters
    assert "image_newline" in parameters
    return model.model.pack_image_features(
        features, torch.tensor(sizes), vision_feature_select_strategy="default", image_newline=torch.full((2,), MARK)
    )[0]


def check(layouts, features):
    """Each token is what the layout says; what no tile explains is a newline; tiles are full rasters."""
    for layout, found in zip(layouts, features, strict=True):
        assert layout.tokens == len(found)
        explained = torch.zeros(layout.tokens, dtype=torch.long)
        for tile in layout.tiles:
            explained[tile.offsets] += 1
            assert torch.equal(found[tile.offsets, 0].long(), torch.full((tile.tokens,), tile.crop))
            assert torch.equal(found[tile.offsets, 1].long(), tile.patches)
            assert tile.tokens == tile.grid[0] * tile.grid[1]
            rows = tile.patches.view(tile.grid)
            assert bool((rows[:, 1:] == rows[:, :-1] + 1).all())
            assert bool((tile.offsets[1:] > tile.offsets[:-1]).all())
        assert int(explained.max()) == 1
        assert torch.equal(explained == 0, (found == MARK).all(1))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_llava_next_layout_is_the_models_packing(size):
    """Tiny crops (6 x 6 patches) of pictures of many sizes."""
    family = find_family(model_of("llava_next"))
    layouts = family.image_layouts({"image_sizes": torch.tensor([size])})
    check(layouts, packed(model_of("llava_next"), [size], 6, [1 + max(t.crop for t in layouts[0].tiles)]))


def test_llava_next_layout_of_several_pictures():
    """Crops are numbered through the batch."""
    family = find_family(model_of("llava_next"))
    layouts = family.image_layouts({"image_sizes": torch.tensor(SIZES)})
    crops = [len({t.crop for t in layout.tiles}) for layout in layouts]
    check(layouts, packed(model_of("llava_next"), SIZES, 6, crops))


def test_llava_next_real_sizes(monkeypatch):
    """The released model's 24 x 24 patches and five tilings, random pictures."""
    model = model_of("llava_next")
    monkeypatch.setattr(model.config, "image_grid_pinpoints", GRID)
    monkeypatch.setattr(model.config.vision_config, "image_size", 336)
    monkeypatch.setattr(model.config.vision_config, "patch_size", 14)
    rng = random.Random(0)
    sizes = [(rng.randint(30, 1500), rng.randint(30, 1500)) for _ in range(25)]
    layouts = find_family(model).image_layouts({"image_sizes": torch.tensor(sizes)})
    crops = [len({t.crop for t in layout.tiles}) for layout in layouts]
    check(layouts, packed(model, sizes, 24, crops))


def test_llava_next_single_tile(monkeypatch):
    """A tiling of one crop: base and one tile."""
    model = model_of("llava_next")
    monkeypatch.setattr(model.config, "image_grid_pinpoints", [[24, 24], [24, 48]])
    layouts = find_family(model).image_layouts({"image_sizes": torch.tensor([(24, 24), (20, 24)])})
    check(layouts, packed(model, [(24, 24), (20, 24)], 6, [2, 2]))


def test_anyres_counts():
    """Counted by hand: a full canvas of 12 x 12 with 12 newlines, and one with padding above and below."""
    assert anyres_tiles((48, 48), (2, 2), 6)[0] == 36 + 144 + 12
    tokens, tiles = anyres_tiles((24, 48), (2, 2), 6)
    assert tokens == 36 + 6 * 12 + 6
    assert [t.grid for t in tiles] == [(6, 6), (3, 6), (3, 6), (3, 6), (3, 6)]


GRIDS = [[(1, 12, 16)], [(1, 8, 12), (1, 20, 8)], [(1, 10, 10), (1, 2, 2), (1, 14, 26)]]


@pytest.mark.parametrize("grids", GRIDS, ids=str)
def test_qwen2_5_window_order_is_the_models(grids):
    """The family's order of tokens inverts what the model does before its first block."""
    model = model_of("qwen2_5_vl")
    pictures = {"image_grid_thw": torch.tensor(grids)}
    patches = sum(t * h * w for t, h, w in grids)
    pictures["pixel_values"] = torch.randn(patches, 96, generator=torch.Generator().manual_seed(0)).double()
    order = window_order(model, pictures)
    assert len(order.unique()) == len(order) == patches // 4
    assert not torch.equal(order, torch.arange(len(order)))
    assert torch.equal(order[find_family(model).token_order(pictures)], torch.arange(len(order)))


@pytest.mark.parametrize("grids", [[(1, 12, 16), (1, 8, 12)]], ids=str)
def test_qwen2_keeps_raster_order(grids):
    """Qwen2-VL has no windows."""
    model = model_of("qwen2_vl")
    pictures = {"image_grid_thw": torch.tensor(grids)}
    pictures["pixel_values"] = torch.randn(288, 96, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(window_order(model, pictures), torch.arange(72))
    assert [layout.tiles[0].grid for layout in find_family(model).image_layouts(pictures)] == [(6, 8), (4, 6)]
