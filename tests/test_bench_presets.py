"""Presets of `vtc bench`: published sizes, visual tokens near what is asked, prompts that stock generate() takes."""

import pytest
import torch

from tests.helpers import model_of
from tests.helpers_video import with_clips
from vtc.bench.presets import build, config_of, count, presets
from vtc.bench.prompts import inputs_of, pictures
from vtc.bench.subject import check_attention, check_fits, choose, device_of, dtype_of
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset
from vtc.patches._tiny_qwen import END, START
from vtc.patches.llava import resize_tower
from vtc.patching import find_family

CPU = torch.device("cpu")
META = torch.device("meta")
NATIVE = {"tiny": 24, "llava-1.5-7b": 24}


def family_of(name):
    """The family of a preset without weights."""
    return find_family(build(config_of(name), META, torch.bfloat16, "sdpa"))


@pytest.mark.parametrize("name", presets())
def test_parameters(name):
    """As published, within 2 %."""
    found = count(config_of(name))
    assert found == pytest.approx(presets()[name].parameters, rel=0.02)
    assert find_family(build(config_of(name), META, torch.bfloat16, "sdpa")).language_shape().layers >= 6


def test_small_presets():
    """`tiny` and `qwen3-vl-mini` have tens of millions of parameters, `llava-mini` more than 300."""
    assert 20e6 < count(config_of("tiny")) < 100e6
    assert 20e6 < count(config_of("qwen3-vl-mini")) < 100e6
    assert 300e6 < count(config_of("llava-mini")) < 400e6


def test_weights_are_seeded_and_alive():
    """The same seed gives the same weights, norms are ones, and the caller's generator is left alone."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    a, b = (build(config_of("tiny"), CPU, torch.bfloat16, "sdpa", seed) for seed in (0, 0))
    assert torch.equal(torch.rand(2), expected)
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name
        assert x.dtype == torch.bfloat16
    layer = a.model.language_model.layers[0]
    assert (layer.input_layernorm.weight == 1).all()
    assert 0.005 < float(layer.mlp.up_proj.weight.detach().float().std()) < 0.05
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    "name, asked, found",
    [
        ("tiny", 576, 576),
        ("tiny", 64, 64),
        ("tiny", 2880, 2880),
        ("llava-1.5-7b", 1152, 1152),
        ("llava-next-7b", 2880, 2928),
        ("llava-next-7b", 1200, 1200),
        ("qwen2.5-vl-3b", 576, 576),
        ("qwen2-vl-7b", 2880, 2880),
        ("internvl3-8b", 2880, 2816),
        ("qwen2.5-vl-7b", 97, 96),
    ],
)
def test_visual_tokens(name, asked, found):
    """The nearest that the layouts give; layouts and pixels agree with the family's own account."""
    family = family_of(name)
    shown = pictures(family, asked, NATIVE.get(name))
    assert abs(shown.total - found) <= 0.02 * found
    layouts = find_family(family.model).image_layouts(shown.inputs)
    if family.groups_crops:
        assert sum(layout.tokens for layout in layouts) == shown.total
    else:
        assert [layout.tokens for layout in layouts] == list(shown.tokens)


@pytest.mark.parametrize(
    "name, frames, asked, found",
    [
        ("qwen3-vl-mini", 16, 576, [72] * 8),
        ("qwen3-vl-8b", 9, 1000, [200] * 5),
        ("qwen2.5-vl-7b", 64, 8192, [256] * 32),
        ("qwen2-vl-7b", 1, 64, [64]),
        ("llava-onevision-7b", 3, 588, [196, 196, 197]),
        ("llava-next-video-7b", 2, 288, [144, 144]),
    ],
)
def test_visual_tokens_of_a_clip(name, frames, asked, found):
    """As many of each frame; layouts and pixels agree with the family's own account."""
    family = family_of(name)
    shown = pictures(family, asked, None, frames=frames)
    assert list(shown.tokens) == found
    arguments = {family.video.get(name, name): value for name, value in shown.inputs.items()}
    (layout,) = family.clip_layouts(arguments)
    assert [tile.tokens for tile in layout.tiles] == [*found[:-1], found[-1] - family.clip_end]
    assert layout.tokens == sum(found)
    if family.sizes == "image_grid_thw":
        assert len(arguments["pixel_values"]) == shown.total * family.tower.config.spatial_merge_size**2


def test_a_clip_where_none_is_possible():
    """A family without clips, and frames with less than a token each."""
    with pytest.raises(UnsupportedError, match="llava takes no clips; possible: images"):
        pictures(family_of("tiny"), 576, 24, frames=8)
    with pytest.raises(ConfigError, match="--visual-tokens 4 .*possible: such as 32"):
        pictures(family_of("qwen3-vl-mini"), 4, None, frames=64)


@with_clips
def test_prompts_with_a_clip(case):
    """Text of the wanted length, placeholders for the clip alone, told from images where transformers wants that."""
    model = model_of(case)
    family = find_family(model)
    shown = pictures(family, 60, None, frames=6)
    inputs = inputs_of(family, shown, 20, 2)
    ids, token = inputs["input_ids"], family.token_ids()
    assert ids.shape == (2, 20 + shown.total)
    assert int((ids == token["video"]).sum()) == 2 * shown.total
    assert not (ids == token["image"]).any()
    if "mm_token_type_ids" in inputs:
        assert torch.equal(inputs["mm_token_type_ids"] == 2, ids == token["video"])
        assert set(inputs["mm_token_type_ids"].unique().tolist()) == {0, 2}
    assert torch.isfinite(model(**inputs).logits).all()
    with pytest.raises(ConfigError, match=r"too short for [36] frame\(s\).*possible: at least"):
        inputs_of(family, shown, 1, 1)


@pytest.mark.parametrize("name, asked", [("llava-next-7b", 64), ("tiny", 2), ("llava-next-7b", 400)])
def test_impossible_visual_tokens(name, asked):
    """What is far off is refused, with the nearest."""
    with pytest.raises(ConfigError, match=f"--visual-tokens {asked} .*possible: such as"):
        pictures(family_of(name), asked, NATIVE.get(name))


def test_a_trained_tower_is_not_resized():
    """Without a preset, LLaVA has multiples of an image's tokens only."""
    family = find_family(model_of("llava"))
    assert pictures(family, 128, None).tokens == (64, 64)
    with pytest.raises(ConfigError, match="possible: multiples of 64"):
        pictures(family, 100, None)


def test_a_new_family_brings_its_own_pictures():
    """Whatever it is called and builds on; without marks, the placeholders stand alone."""
    model = model_of("qwen2_vl")

    class Columns(type(find_family(model))):
        name, marks = "columns", ()

        def random_pictures(self, visual, native, generator):
            grid = torch.tensor([[1, 2 * visual, 2]])
            return [visual], {"pixel_values": torch.randn(4 * visual, 96, generator=generator), "image_grid_thw": grid}

    family = Columns(model)
    shown = pictures(family, 30, None)
    assert [layout.tiles[0].grid for layout in family.image_layouts(shown.inputs)] == [(30, 1)]
    assert not torch.isin(inputs_of(family, shown, 20, 1)["input_ids"], torch.tensor([START, END])).any()


def test_a_new_family_brings_its_own_presets_and_prompts(monkeypatch):
    """Presets are not inherited; what stands around the placeholders is the family's, and counts as text."""
    model = model_of("llava")

    class Bracketed(FAMILIES["llava"]):
        name = "bracketed"
        presets = {"small": Preset(lambda: "a config", 1, "small")}

        def image_ids(self, tokens):
            return [5, 5, *super().image_ids(tokens), 6]

    class Heir(Bracketed):
        name = "heir"

    monkeypatch.setattr(FAMILIES, "_items", dict(FAMILIES._items))
    FAMILIES.register("bracketed")(Bracketed)
    assert (config_of("small"), Heir.presets) == ("a config", {})
    family = Bracketed(model)
    (row,) = inputs_of(family, pictures(family, 128, None), 20, 1)["input_ids"]
    assert len(row) == 20 + 128
    (first, *_), visual = (row == family.image_token_id).nonzero().flatten().tolist(), [family.image_token_id] * 64
    assert row[first - 2 : first + 132].tolist() == [5, 5, *visual, 6, 5, 5, *visual, 6]
    with pytest.raises(ConfigError, match="possible: at least 8"):
        inputs_of(family, pictures(family, 128, None), 7, 1)


def test_resized_tower_runs():
    """New position embeddings, the same patches and class token."""
    model = build(config_of("tiny"), CPU, torch.float32, "sdpa")
    tower = find_family(model).tower
    before = {name: x for name, x in tower.named_parameters() if "position" not in name}
    resize_tower(tower, 5)
    after = dict(tower.named_parameters())
    assert all(after[name] is x for name, x in before.items())
    assert tower(torch.randn(1, 3, 70, 70)).last_hidden_state.shape[1] == 26
    assert find_family(model).encoder.tokens == 25


@pytest.mark.parametrize("name", list(FAMILIES))
def test_prompts(name):
    """Text of the wanted length, equal rows, placeholders for the pictures, no other special token but the marks."""
    model = model_of(name)
    family = find_family(model)
    shown = pictures(family, family.encoder.tokens or 150, None)
    inputs = inputs_of(family, shown, 60, 3)
    ids = inputs["input_ids"]
    visual = ids == family.image_token_id
    assert (ids == ids[0]).all()
    assert (visual.sum(1) == shown.total).all()
    assert ids.shape == (3, 60 + shown.total)
    assert family.image_token_id in family.special_ids()
    special = torch.isin(ids[0], torch.tensor(family.special_ids())) & ~visual[0]
    marks = [i for tokens in shown.tokens for i in family.image_ids(tokens) if i in family.special_ids()]
    assert int(special.sum()) == len(marks) - shown.total
    assert torch.isfinite(model(**inputs).logits).all()
    with pytest.raises(ConfigError, match="--prompt-lengths 1 is too short.*possible: at least"):
        inputs_of(family, shown, 1, 1)


BAD = {
    "preset": (lambda: config_of("tinny"), "unknown preset 'tinny': did you mean 'tiny'"),
    "device": (lambda: device_of("tpu"), "--device 'tpu' is not there; possible: cpu"),
    "dtype": (lambda: dtype_of("int8", CPU), "--dtype 'int8' is unknown; possible: float32, bfloat16, float16"),
    "memory": (lambda: check_fits("it", 10**15, CPU), "it needs 1000000.0 GB for its weights, cpu has .* possible"),
    "both": (lambda: choose("tiny", "x", CPU, torch.float32, "sdpa", 0), "one of --preset and --model is needed"),
    "folder": (lambda: choose(None, "x", CPU, torch.float32, "sdpa", 0), "--model 'x' is no folder.*possible"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    """One line: what is wrong, the value, what is possible."""
    call, words = BAD[name]
    with pytest.raises(ConfigError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_eager_attention_is_refused():
    """A model that was made with it, in any of its parts."""
    model = build(config_of("tiny"), META, torch.float32, "sdpa")
    check_attention(model)
    model.model.vision_tower.config._attn_implementation = "eager"
    with pytest.raises(ConfigError, match="eager attention.*possible"):
        check_attention(model)
