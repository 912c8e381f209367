"""Pictures whose tokens LLaVA-OneVision resamples: layouts, signals, merges and views, against the model's own code."""

import random

import pytest
import torch

import vtc
from tests.helpers import IMAGES, STRATEGIES, build, forward, generate, kept_of, patched, refused, split
from tests.helpers_merging import MERGED_BEFORE
from tests.helpers_oracle import truth
from vtc.check import behaviour
from vtc.check.trial import Tiny, Trial, watch
from vtc.core.signals import EncoderFeatures
from vtc.patches import FAMILIES
from vtc.patching import find_family

CASE, MARK, STEPS = "llava_onevision", -7.0, 4
SIDES = [[h, w] for h in (24, 48, 72, 96) for w in (24, 48, 72, 96)]
SIZES = [(90, 96), (96, 40), (33, 70), (24, 24), (20, 300), (96, 96), (61, 47)]


@pytest.fixture(scope="module")
def model():
    """At most two crops' worth of tokens, so that a canvas of more than 87 patches is resampled."""
    return FAMILIES[CASE].tiny(vision_aspect_ratio="anyres_max_2").double()


def inputs_of(model, images=IMAGES):
    """A batch; the pictures that are alone in their prompt are tiled, and two of three of these resampled."""
    inputs = FAMILIES[CASE].tiny_inputs(model, images)
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def packed(model, x, sizes, crops, aspect):
    """The model's own packing of maps x [crops, 36, e], newlines marked."""
    newline = torch.full((x.shape[-1],), MARK, dtype=x.dtype)
    return model.model.pack_image_features(list(x.split(crops)), torch.tensor(sizes), newline, aspect)[0]


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_signals_are_resampled_as_features(model, most, monkeypatch):
    """Layouts of many sizes are those of the model's packing, and what is asked of each token is resampled alike."""
    monkeypatch.setattr(model.config, "image_grid_pinpoints", SIDES)
    family, aspect = find_family(model), f"anyres_max_{most}"
    given = {"image_sizes": torch.tensor(SIZES), "vision_aspect_ratio": aspect}
    crops, layouts = family.tile_counts(given), family.image_layouts(given)
    x = torch.randn(sum(crops), 36, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(most))
    found, scores = family.by_tile(x, layouts, given), family.tile_scores([x[..., 0]], layouts, given)
    for i, features in enumerate(packed(model, x, SIZES, crops, aspect)):
        explained = torch.zeros(len(features), dtype=torch.long)
        assert layouts[i].tokens == len(features) == family.token_count(SIZES[i])[0] or most != 2
        for tile, rows, score in zip(layouts[i].tiles, found[i], scores[i], strict=True):
            explained[tile.offsets] += 1
            assert tile.tokens == tile.grid[0] * tile.grid[1]
            torch.testing.assert_close(rows, features[tile.offsets], atol=1e-12, rtol=0)
            torch.testing.assert_close(score, features[tile.offsets, 0], atol=1e-12, rtol=0)
        assert explained.max() == 1
        assert torch.equal(explained == 0, (features == MARK).all(1))
    resampled = sum(bool(layout.resampled) for layout in layouts)
    assert resampled == {1: 6, 2: 5, 3: 5, 9: 2}[most]
    assert all(len(layout.tiles) == 2 for layout in layouts if layout.resampled)


def test_real_sizes():
    """Worked out by hand for the released model: 2000 x 3000 on 4 x 6 crops of 27 x 27 is a base crop and 66 x 99."""
    family = find_family(build(CASE))
    vision, config = family.tower.config, family.model.config
    vision.image_size, vision.patch_size = 384, 14
    config.image_grid_pinpoints = [[h, w] for h in range(384, 2305, 384) for w in range(384, 2305, 384)]
    layout = family.image_layout((2000, 3000), 25, {})
    assert (layout.tokens, layout.resampled, layout.tiles[1].grid) == (729 + 66 * 100, "after", (66, 99))
    rng = random.Random(0)
    for size in [(rng.randint(30, 3000), rng.randint(30, 3000)) for _ in range(5)]:
        count = 1 + family.tiling(size)[0] * family.tiling(size)[1]
        assert family.image_layout(size, count, {}).tokens == family.token_count(size)[0]


def merges(name):
    """Whether a strategy merges at the projector, which the oracle does not redo."""
    return name == "pool" or vtc.load_strategy(name, CASE, keep=0.3).projector.method in MERGED_BEFORE


@pytest.mark.product
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if not merges(name)])
@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_generate_equals_oracle(model, strategy, positions):
    """Batched generation gives the tokens and logits of each prompt shortened by hand."""
    inputs = inputs_of(model)
    with patched(model, strategy, keep=0.3, positions=positions):
        out = generate(model, inputs, STEPS)
        report = vtc.report(model)
    assert sum(bool(layout.resampled) for layout in find_family(model).image_layouts(inputs)) == 2
    for b, single in enumerate(split(inputs, IMAGES)):
        expected = truth(model, single, kept_of(report, b), positions, STEPS)
        torch.testing.assert_close(out.logits[:, b], expected.logits[-STEPS:], atol=1e-9, rtol=0)


@pytest.mark.product
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "uniform"])
def test_batched_equals_one_by_one(model, strategy):
    """Each prompt alone keeps the same tokens and gives the same last logits as in the batch."""
    behaviour.batch(Trial(strategy, Tiny(CASE, model=model), {"keep": 0.3}), near=1e-9)


@pytest.mark.parametrize("strategy", ["visiondrop", "visiontrim", "apet"])
def test_what_would_merge_before_the_projector_merges_embeddings(model, strategy):
    """A token that takes in no other is the model's own embedding; the encoder's features are resampled, too."""
    inputs, seen = inputs_of(model, (1,)), []
    with torch.no_grad():
        own = model.model.get_image_features(**{k: inputs[k] for k in ("pixel_values", "image_sizes")}).pooler_output[0]
    with patched(model, strategy, keep=0.5), torch.no_grad():
        choices = watch(model)
        layer = model.model.language_model.layers[0]
        handle = layer.register_forward_pre_hook(lambda m, args, kwargs: seen.append(args[0]), with_kwargs=True)
        model(**inputs)
        handle.remove()
        (image,) = vtc.report(model).images
    choices = [choice for choice in choices if choice.stage.stage.site == "projector"]
    start = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    rows = seen[0][0, start : start + image.steps[0].after]
    assert any(choice.selection.merge is not None for choice in choices)
    layout = find_family(model).image_layouts(inputs)[0]
    tiles = [tile.offsets for tile in layout.tiles]
    expected = []
    for choice in choices:
        for b in range(len(choice.selection.keep)):
            unit = [t for t in tiles if len(t) == choice.context.tokens]
            offsets = unit[0] if unit else torch.cat(tiles)
            one = type(choice.selection)(
                choice.selection.keep[b : b + 1], None, choice.selection.merge and choice.selection.merge.unit(b)
            )
            expected.append(one.apply_features(own[offsets].unsqueeze(0))[0])
    expected = torch.cat(expected)
    assert len(rows) == len(expected)
    assert float(torch.cdist(rows, expected).amin(1).max()) < 1e-6  # merge weights are float32
    assert float(torch.cdist(expected, rows).amin(1).max()) < 1e-6
    asked = {type(signal) for choice in choices for signal in choice.context.signals}
    assert EncoderFeatures in asked or strategy in ("visiondrop", "visiontrim")


def test_stages_inside_the_encoder_are_refused(model):
    """For a picture that is resampled; a smaller one goes through."""
    with patched(model, "tome", keep=0.5):
        refused(lambda: forward(model, inputs_of(model, (1,))), "tome", CASE, "image of this size", "possible:")
        assert forward(model, inputs_of(model, (2,))).logits.isfinite().all()


def test_views_of_a_resampled_canvas(model):
    """The boxes of its tokens tile what unpadding leaves of the picture: 10 of 12 rows of patches, by hand."""
    family, size = find_family(model), (40, 44)
    layout = family.image_layout(size, 5, {})
    base, tiles = family.views(None, size, layout)
    assert (base.name, tiles.name) == ("base", "tiles")
    assert torch.equal(base.offsets, torch.arange(36))
    high, wide = layout.tiles[1].grid
    areas = (tiles.boxes[:, 2] - tiles.boxes[:, 0]) * (tiles.boxes[:, 3] - tiles.boxes[:, 1])
    assert float(areas.sum()) == pytest.approx(40 / 1.1 * 44)
    assert len(areas) == high * wide == len(tiles.offsets)
    assert tiles.boxes[0, :2].tolist() == pytest.approx([0, 2 / 1.1])
    assert float(base.boxes[-1, 2]) == pytest.approx(44)
