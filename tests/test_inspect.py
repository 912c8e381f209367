"""Which patch a token shows, against the real image processors; where merged tokens flow, against what was merged."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import vtc
from tests.helpers import forward, inputs_of, model_of, patched, refused, spy
from tests.helpers_checkpoints import save_tiny
from vtc.eval import models
from vtc.eval.inspect.record import DROPPED, GONE, KEPT, MERGED, outcomes
from vtc.patches import FAMILIES
from vtc.patches._tiny import IMAGE_TOKEN
from vtc.patching import find_family
from vtc.strategies.visiondrop import VisionDrop

SIZES = ((150, 100), (90, 160), (100, 100), (200, 61))  # width, height


@pytest.fixture(scope="module", params=list(FAMILIES))
def loaded(request, tmp_path_factory):
    """A family's tiny model with its real processor."""
    return models.load(str(save_tiny(request.param, tmp_path_factory.mktemp(request.param))), {}, "cpu")


def geometry(loaded, picture):
    """Inputs, layout and views of one picture."""
    inputs = loaded.encode(["?"], [[picture]])
    (layout,) = loaded.family.layouts(inputs)
    size = (picture.height, picture.width)
    return inputs, layout, loaded.family.views(loaded.processor.image_processor, size, layout)


def brightest(loaded, inputs, layout, view):
    """The place of the token of a view whose pixels are the brightest, from `pixel_values` alone."""
    pixels, squares = inputs["pixel_values"].double(), loaded.family.name == "gemma3"
    if "image_grid_thw" in inputs:  # patches, the four of a token next to each other
        return int(pixels.mean(1).unflatten(0, (-1, 4)).mean(1).argmax())
    crops, side = pixels[0] if pixels.ndim == 5 else pixels, 8 if loaded.family.groups_crops or squares else 4
    patches = torch.nn.functional.avg_pool2d(crops.mean(1, keepdim=True), side).flatten(1)
    tiles = {"picture": layout.tiles, "base": layout.tiles[:1], "tiles": layout.tiles[1:]}[view.name]
    found = [(float(patches[t.crop, p]), int(o)) for t in tiles for p, o in zip(t.patches, t.offsets)]
    return max(found)[1]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_token_shows_its_box(loaded, size):
    """A picture that is bright in the box of one token makes that token's pixels the brightest."""
    inputs, layout, views = geometry(loaded, Image.new("RGB", size))
    for view in views:
        for i in range(0, len(view.offsets), max(1, len(view.offsets) // 11)):
            box = [round(x) for x in view.boxes[i].tolist()]
            picture = Image.new("RGB", size)
            ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
            inputs = loaded.encode(["?"], [[picture]])
            assert brightest(loaded, inputs, layout, view) == int(view.offsets[i]), (view.name, i, box)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_views_cover_what_is_seen(loaded, size):
    """Every token but row ends is in one view; boxes do not overlap and fill the crops, which lie in the picture."""
    _, layout, views = geometry(loaded, Image.new("RGB", size))
    places = torch.cat([view.offsets for view in views])
    assert len(places.unique()) == len(places) == sum(tile.tokens for tile in layout.tiles)
    for view in views:
        area = ((view.boxes[:, 2] - view.boxes[:, 0]) * (view.boxes[:, 3] - view.boxes[:, 1])).sum()
        crops = ((view.crops[:, 2] - view.crops[:, 0]) * (view.crops[:, 3] - view.crops[:, 1])).sum()
        assert float(area) == pytest.approx(float(crops))
        assert float(view.boxes.min()) >= 0
        assert (view.boxes[:, 2:].amax(0) <= torch.tensor(size) + 1e-9).all()
    if views[0].name != "picture" or "qwen" in loaded.family.name:
        assert views[0].crops.tolist() == [[0, 0, *size]]


def test_nothing_outside_the_crop_is_seen(tmp_path):
    """LLaVA: light outside of the crop, on either side, changes no pixel; one pixel further in it does."""
    loaded = models.load(str(save_tiny("llava", tmp_path)), {}, "cpu")
    dark = Image.new("RGB", (320, 100))
    inputs, _, (view,) = geometry(loaded, dark)
    left, top, right, bottom = view.crops[0].tolist()
    assert (left, top, right, bottom) == pytest.approx((109.7, 0, 209.7, 100), abs=1.0)
    reach = 8  # of the resampling, in pixels of the picture
    for edges, seen in (((0, left - reach), False), ((right + reach, 320), False), ((0, left + 5), True)):
        picture = dark.copy()
        ImageDraw.Draw(picture).rectangle((round(edges[0]), 0, round(edges[1]), 99), fill="white")
        same = torch.equal(loaded.encode(["?"], [[picture]])["pixel_values"], inputs["pixel_values"])
        assert same != seen


def test_a_foreign_processor_is_refused(tmp_path):
    """A processor whose resizing is unknown, or that gives other sizes than the model saw, is refused in a line."""
    loaded = models.load(str(save_tiny("llava", tmp_path)), {}, "cpu")
    images = loaded.processor.image_processor
    _, layout, _ = geometry(loaded, Image.new("RGB", (40, 40)))
    images.crop_size = {"height": 16, "width": 16}
    refused(lambda: loaded.family.views(images, (40, 40), layout), "16 x 16", "32 x 32", kind=vtc.UnsupportedError)
    images.size = {"longest_edge": 32}
    refused(lambda: loaded.family.views(images, (40, 40), layout), "longest_edge", kind=vtc.UnsupportedError)
    images.do_pad = True
    refused(lambda: loaded.family.views(images, (40, 40), layout), "do_pad=False", kind=vtc.UnsupportedError)


@pytest.mark.parametrize("case", [*FAMILIES, "llava-siglip"])
def test_pooled_tokens_are_the_means_of_what_flows_into_them(case):
    """`merged_into` and the plain model's own embeddings give what the pruned language model receives."""
    model, inputs = model_of(case), inputs_of(case, (1,))
    with spy(model) as plain:
        forward(model, inputs)
    with patched(model, "pool", keep=0.25), spy(model) as seen:
        forward(model, inputs)
        image = vtc.report(model).images[0]
    full, pruned = plain[0]["inputs_embeds"][0], seen[0]["inputs_embeds"][0]
    is_image = inputs["input_ids"][0] == IMAGE_TOKEN
    places, stays = is_image.nonzero().flatten(), ~is_image
    stays[places[image.kept]] = True
    into, column = image.merged_into(0), stays.cumsum(0) - 1
    assert len(into) == image.before
    for place in image.kept.tolist():
        mean = full[places][into == place].mean(0)
        torch.testing.assert_close(pruned[column[places[place]]], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [*FAMILIES, "llava-siglip"])
def test_cls_stands_where_another_place_is_written(case):
    """visionzip keeps [CLS] once for each crop: there, and nowhere else, a survivor is not its own."""
    model, inputs = model_of(case), inputs_of(case, (1, 2))
    with patched(model, "visionzip", keep=0.5):
        forward(model, inputs)
        report = vtc.report(model)
    has_cls = find_family(model).encoder.has_cls
    layouts = find_family(model).layouts(inputs)
    for image, layout in zip(report.images, layouts, strict=True):
        into = image.merged_into(0)
        foreign = [place for place in image.kept.tolist() if into[place] != place]
        assert len(foreign) == (len(layout.tiles) if has_cls else 0)
        assert set(into.tolist()) - {-1} == set(image.kept.tolist()) - set(foreign)


def test_flows_inside_the_language_model(monkeypatch):
    """Each later step names places of the image, whatever was dropped before; only who was there flows anywhere."""
    chosen, select = [], VisionDrop.select

    def spied(self, context, decoder):
        chosen.append(select(self, context, decoder))
        return chosen[-1]

    monkeypatch.setattr(VisionDrop, "select", spied)
    model, inputs = model_of("llava"), inputs_of("llava", (1,))
    with patched(model, "visiondrop", keep=0.3):
        forward(model, inputs)
        image = vtc.report(model).images[0]
    assert len(chosen) == len(image.steps) - 1 > 1
    there = image.steps[0].kept  # in the order of the sequence
    for number, selection in enumerate(chosen, 1):
        into = image.merged_into(number)
        slots = there[selection.keep[0]]
        for place, slot in zip(there.tolist(), selection.merge.target[0].tolist()):
            assert int(into[place]) == (-1 if slot < 0 else int(slots[slot]))
        gone = sorted(set(range(image.before)) - set(there.tolist()))
        assert (into[gone] == -1).all()
        there = image.steps[number].kept


def test_methods_that_only_drop_have_no_flow():
    """`merged_into` is None, and plain data says nothing of it; where tokens merge it does."""
    model, inputs = model_of("llava"), inputs_of("llava", (1,))
    for strategy, merges in (("hiprune+fastv", False), ("pool", True)):
        with patched(model, strategy, keep=0.25):
            forward(model, inputs)
            report = vtc.report(model)
        image = report.images[0]
        assert all((image.merged_into(i) is not None) == merges for i in range(len(image.steps)))
        for step in report.to_dict()["images"][0]["stages"]:
            assert ("merged_into" in step) == merges


def test_outcomes_follow_merges_of_merges():
    """By hand: six tokens, [CLS] at place 1, a merge of a merge, then a plain drop."""
    steps = [
        {"layer": None, "before": 6, "after": 4, "kept": [1, 0, 3, 5], "merged_into": [0, 3, 3, 3, -1, 5]},
        {"layer": 2, "before": 4, "after": 3, "kept": [1, 0, 5], "merged_into": [0, 1, -1, 5, -1, 5]},
        {"layer": 4, "before": 3, "after": 1, "kept": [5], "merged_into": None},
    ]
    first, second, third = outcomes({"steps": steps}, 6)
    assert first.state.tolist() == [KEPT, MERGED, MERGED, KEPT, DROPPED, KEPT]
    assert first.into.tolist() == [0, 3, 3, 3, -1, 5]
    assert (first.summaries, first.merged, first.dropped, first.targets) == ((1,), 2, 1, 1)
    assert second.state.tolist() == [KEPT, MERGED, MERGED, MERGED, GONE, KEPT]
    assert second.into.tolist() == [0, 5, 5, 5, -1, 5]
    assert (second.summaries, second.merged, second.dropped, second.targets) == ((1,), 1, 0, 1)
    assert third.state.tolist() == [DROPPED, MERGED, MERGED, MERGED, GONE, KEPT]
    assert (third.summaries, third.merged, third.dropped) == ((), 0, 2)
    assert dict(third.ranks) == {5: 1}
    assert dict(first.ranks) == {3: 0}
    assert isinstance(first.state, np.ndarray)
