"""Which crops form an image, where only the prompt tells: InternVL's runs, and the marks of SmolVLM and Idefics3."""

import importlib

import pytest
import torch
import transformers
from PIL import Image

import vtc
from tests import test_contract_oracle, test_decoder_oracle
from tests.helpers import Words, forward, generate, inputs_of, model_of, refused, split, subject_of
from tests.helpers_checkpoints import image_processor, processor_of
from vtc.check import behaviour
from vtc.core.errors import ConfigError, PatchError, UnsupportedError
from vtc.core.layout import CropGroup, ImageLayout, VisionRun, crop_groups, image_runs, raster
from vtc.core.signals import ClsAttention, Extent
from vtc.eval.processors import pictures_only
from vtc.patches import FAMILIES
from vtc.patches._shuffle import arrangement, block_order
from vtc.patches._tiny import IMAGE_TOKEN
from vtc.patches.idefics3 import LINE, MARK, TAG, WHOLE, image_text
from vtc.patching import find_family
from vtc.strategies.hired import region_of
from vtc.strategies.vflowopt_projector import cells_of

FAMILIES_OF_CROPS = [name for name in vtc.families() if FAMILIES[name].groups_crops]
TAGGED = [name for name in FAMILIES_OF_CROPS if name != "internvl"]
cases = pytest.mark.parametrize("case", FAMILIES_OF_CROPS)
IMAGE = [IMAGE_TOKEN] * 16


def groups(case, ids, crops):
    """The images of prompts with these ids [B, L], by the family's rule."""
    ids = torch.tensor(ids)
    rule = find_family(model_of(case)).image_groups
    return crop_groups(rule, [16] * crops, ids == IMAGE_TOKEN, lambda: ids)


def tagged(rows, columns):
    """An image of Idefics3's prompts."""
    return image_text(IMAGE, rows, columns, MARK, (TAG, WHOLE), LINE)


def test_a_run_is_an_image():
    """InternVL: three crops, one, and two, in two prompts; marks do not matter, only that something stands between."""
    ids = [[5, *IMAGE * 3, 6, *IMAGE], [*IMAGE * 2, *[7] * 34]]
    assert groups("internvl", ids, 6) == [CropGroup(3), CropGroup(1), CropGroup(2)]
    assert groups("internvl", [ids[0]] * 3, 4) == [CropGroup(3), CropGroup(1)]  # beams
    with pytest.raises(PatchError, match="possible: equal numbers"):
        groups("internvl", ids, 5)


@pytest.mark.parametrize("case", TAGGED)
def test_marks_tell_images(case):
    """One mark between two crops of an image, two between images, also without text between these; rows by line."""
    row = [5, *tagged(2, 3), *tagged(0, 0), 6, 7, *tagged(1, 4), *tagged(3, 1), 8]
    assert groups(case, [row], 17) == [CropGroup(7, 3), CropGroup(1), CropGroup(5, 4), CropGroup(4, 1)]
    assert groups(case, [row, row], 17) == groups(case, [row], 17)  # beams
    long = [MARK if i == MARK else i for i in row]
    long = [token for i in long for token in ([TAG, TAG] if i in (TAG, WHOLE) else [i])]  # a tag of several tokens
    assert groups(case, [long], 17) == groups(case, [row], 17)
    joined = [token for token in row if token != LINE]  # without line breaks the arrangement is unknown
    assert groups(case, [joined], 17) == [CropGroup(7), CropGroup(1), CropGroup(5), CropGroup(4)]


@pytest.mark.parametrize("case", TAGGED)
def test_a_prompt_without_marks_is_refused(case):
    refused(lambda: groups(case, [[5, *IMAGE, 6, *IMAGE, 7]], 2), "no mark", "processor", kind=PatchError)
    refused(lambda: groups(case, [[5, MARK, *IMAGE]], 1), "no mark", "processor", kind=PatchError)


def test_the_whole_comes_first():
    """Tiles of a layout: the last crop first, at (0, 0); the others where they stand, or at no known place."""
    signal = ClsAttention(0)
    run = VisionRun(images=[raster(i, 2, 2) for i in range(6)])
    run.signals[signal] = [[torch.full((4,), float(i))] for i in range(6)]
    known, unknown = run.grouped([CropGroup(5, 2), CropGroup(1)]), run.grouped([CropGroup(5), CropGroup(1)])
    for found in (known, unknown):
        image, single = found.images
        assert [int(tile.offsets[0]) for tile in image.tiles] == [16, 0, 4, 8, 12]
        assert [tile.crop for tile in image.tiles] == [4, 0, 1, 2, 3]
        assert [float(x[0]) for x in found.signals[signal][0]] == [4, 0, 1, 2, 3]
        assert single == ImageLayout(4, single.tiles)
    assert [tile.corner for tile in known.images[0].tiles] == [(0, 0), (0, 0), (0, 2), (2, 0), (2, 2)]
    assert [tile.corner for tile in unknown.images[0].tiles] == [(0, 0), None, None, None, None]
    assert unknown.images[0].tiles[1].extent == Extent(2, 2, None, None)


def test_methods_with_tiles_at_unknown_places():
    """HiRED's strips need no places, its areas do; VFlowOpt's cells then stay within a tile."""
    tiles = (Extent(2, 2, 0, 0), Extent(2, 2, None, None), Extent(2, 2, None, None))
    assert region_of(tiles, "strips").tolist() == [0, 0, 1, 1]
    refused(lambda: region_of(tiles, "spatial"), "spatial", "possible: strips", kind=ConfigError)
    assert cells_of(tiles, 2).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert cells_of((tiles[0], Extent(2, 2, 0, 0), Extent(2, 2, 0, 2)), 4).tolist() == [0] * 4 + [1] * 8


def test_blocks_are_the_models():
    """Patches of 8 x 8 numbered, through the models' own pixel shuffle."""
    numbers = torch.arange(64.0).view(1, 64, 1)
    order = block_order(8, 8, 2).view(1, 16, 4)
    assert torch.equal(model_of("internvl").model.pixel_shuffle(numbers.view(1, 8, 8, 1), 0.5).view(1, 16, 4), order)
    assert torch.equal(model_of("smolvlm").model.connector.pixel_shuffle(numbers, 2), order.float())
    assert torch.equal(model_of("idefics3").model.connector.pixel_shuffle(numbers, 4).view(-1), block_order(8, 8, 4))
    assert [arrangement(n) for n in (1, 2, 6, 7, 12)] == [(1, 1), (1, 2), (2, 3), (1, 7), (3, 4)]


@cases
def test_a_budget_is_an_images(case):
    """A number of tokens is that of an image, not of a crop; per request all images share it, and beams too."""
    model, inputs = model_of(case), inputs_of(case)
    with vtc.patched(model, "divprune", keep=20, scope="per_image"):
        forward(model, inputs)
        report = vtc.report(model)
        assert [image.before for image in report.images] == [48, 16, 80, 64]
        assert [image.after for image in report.images] == [20, 16, 20, 20]
        generate(model, split(inputs)[1], 2, num_beams=2)
        beams = vtc.report(model)
    assert [(image.prompt, image.before, image.after) for image in beams.images][:2] == [(0, 16, 16), (0, 80, 20)]
    with vtc.patched(model, "divprune", keep=24, scope="per_request"):
        forward(model, inputs)
        assert [image.after for image in vtc.report(model).images] == [24, 4, 20, 24]


@cases
def test_what_is_refused(case):
    """Inside the encoder, by name; relevance in CLIP's space, which goes with CLIP's encoder only."""
    model = model_of(case)
    refused(lambda: vtc.patch(model, "tome", keep=0.5), case, "not neighbours", kind=UnsupportedError)
    ask = lambda: vtc.patch(model, "cdpruner", keep=0.5, relevance="clip", processor=Words())  # noqa: E731
    refused(ask, "no CLIP text tower", "relevance=embeddings", kind=UnsupportedError)


@pytest.mark.parametrize("case", TAGGED)
def test_hidden_parts_of_crops_are_refused(case):
    """A mask of ones over crops, and zeros over filler, is what the processor gives; within a crop it is refused."""
    model, inputs = model_of(case), inputs_of(case)
    pixels = inputs["pixel_values"]
    real = (pixels != 0).flatten(2).any(2)
    mask = real[:, :, None, None].expand(*pixels.shape[:2], 32, 32).long().contiguous()
    with vtc.patched(model, "uniform", keep=0.5):
        expected = forward(model, inputs).logits
        torch.testing.assert_close(forward(model, {**inputs, "pixel_attention_mask": mask}).logits, expected)
        mask[0, 0, -4:] = 0
        call = lambda: forward(model, {**inputs, "pixel_attention_mask": mask})  # noqa: E731
        refused(call, "pixel_attention_mask", "do_image_splitting", kind=UnsupportedError)


def test_configs_that_give_no_blocks_are_refused():
    """[CLS] among the patches, several layers, crops that are not square."""
    model = FAMILIES["internvl"].tiny()
    family = find_family(model)
    pixels = torch.zeros(1, 3, 32, 16)
    refused(lambda: family.image_layouts({"pixel_values": pixels}), "32 x 16", "squares", kind=UnsupportedError)
    model.config.vision_feature_select_strategy = "full"
    refused(lambda: vtc.patch(model, "uniform"), "'full'", "possible: default", kind=UnsupportedError)


def test_smolvlms_own_processor(monkeypatch):
    """Which wants num2words, for clips: the family finds the crops that it made, and what Idefics3's makes is the same,
    so that other tests go without. Pictures in a row, with text between them, and in one crop each."""
    try:
        module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
    except ModuleNotFoundError as error:
        pytest.skip(f"transformers {transformers.__version__} needs it for this module: {error}")
    monkeypatch.setattr(module, "num2words", str)
    model, family = model_of("smolvlm"), find_family(model_of("smolvlm"))
    other = processor_of(model, type(family))
    other.tokenizer.padding_side = "left"
    options = dict(max_image_size={"longest_edge": 32}, size={"longest_edge": 96})
    images = image_processor("SmolVLMImageProcessor")(**options)
    kind = pictures_only(module.SmolVLMProcessor)
    own = kind(images, other.tokenizer, None, image_seq_len=model.model.image_seq_len)
    shapes, grey = ((60, 40), (33, 80), (80, 80), (90, 20)), Image.linear_gradient("L")
    pictures = [[grey.resize(size).convert("RGB")] for size in shapes]
    pictures, texts = [pictures[0], sum(pictures[1:], [])], ["what <image> ?", "a <image><image> or<image>"]
    for divided in (True, False):
        asked = dict(images=pictures, text=texts, do_image_splitting=divided, padding=True, return_tensors="pt")
        made, same = own(**asked), other(**asked)
        assert {name: torch.equal(made[name], same[name]) for name in same} == dict.fromkeys(same, True)
        shown = images(pictures, do_image_splitting=divided, return_row_col_info=True)
        grids = zip(sum(shown["rows"], []), sum(shown["cols"], []), strict=True)
        corners = [[(0, 0), *((4 * r, 4 * c) for r in range(rows) for c in range(columns))] for rows, columns in grids]
        layouts = family.layouts(made)
        assert [[tile.corner or (0, 0) for tile in layout.tiles] for layout in layouts] == corners
        assert divided == (len(corners[0]) > 1)
        with vtc.patched(model, "hiprune", keep=0.5):
            forward(model, {k: v.double() if v.is_floating_point() else v for k, v in made.items()})
            assert [image.before for image in vtc.report(model).images] == [16 * len(crops) for crops in corners]


also = [pytest.param(name, marks=pytest.mark.full) for name in ("divprune", "visiondrop")]


@pytest.mark.parametrize("strategy", ["visionzip", "fastv", *also])
def test_internvl_with_qwen3(strategy):
    """InternVL3.5's text model, whose heads are not a part of the hidden size: the contract, and the oracle."""
    case = "internvl-qwen3"
    assert model_of(case).config.text_config.model_type == "qwen3"
    one = subject_of(strategy, case)
    for check in (behaviour.batch, behaviour.padding, behaviour.keep_all, behaviour.decoding, behaviour.reported):
        check(one)
    oracle = test_contract_oracle if strategy == "divprune" else test_decoder_oracle
    oracle.test_generate_equals_oracle(strategy, case, "compact")


def test_runs_in_two_prompts():
    """The places of crops, prompt by prompt."""
    is_image = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]]).bool()
    requests, source, places = image_runs(is_image, [2, 2, 2])
    assert (requests, source) == ([[0, 1], [2]], [0, 1, 2])
    assert [[where.tolist() for where in row] for row in places] == [[[0, 1], [3, 4]], [[1, 2]]]
