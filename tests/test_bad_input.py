"""Bad input of many kinds: one line of a VtcError that names the value and what is possible; the model untouched."""

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

import vtc
from tests.helpers import build, forward, inputs_of, model_of, refused, state
from vtc.patches._tiny import TEXT

pytestmark = pytest.mark.usefixtures("untouched")
RANGE = "possible: a fraction in (0, 1]"
ARGUMENTS = {
    "unknown-strategy": (("hiprun",), {}, ("'hiprun'", "did you mean 'hiprune'", "uniform")),
    "empty-strategy": (("",), {}, ("strategy ''", "possible")),
    "strategy-is-a-number": ((3,), {}, ("int", "a name, a YAML file")),
    "strategy-is-none": ((None,), {}, ("NoneType", "a name, a YAML file")),
    "unknown-key": (("hiprune",), {"alhpa": 0.2}, ("'alhpa'", "did you mean 'alpha'")),
    "knob-of-another-method": (("uniform",), {"alpha": 0.2}, ("'alpha'", "possible")),
    "method-as-override": (("uniform",), {"method": "random"}, ("'method'",)),
    "stages-as-override": (("uniform",), {"stages": []}, ("'stages'",)),
    "text-for-a-number": (("hiprune",), {"alpha": "much"}, ("alpha='much'", "str", "possible: float")),
    "bool-for-a-layer": (("hiprune",), {"object_layer": True}, ("object_layer=True", "bool")),
    "list-for-a-layer": (("hiprune",), {"object_layer": [1, 2]}, ("object_layer=[1, 2]", "list")),
    "float-for-a-seed": (("random",), {"seed": 1.5}, ("seed=1.5", "possible: int")),
    "keep-0": (("uniform", 0), {}, ("keep=0", RANGE)),
    "keep-0.0": (("uniform", 0.0), {}, ("keep=0.0", RANGE)),
    "keep-1.5": (("uniform", 1.5), {}, ("keep=1.5", RANGE)),
    "keep-minus-3": (("uniform", -3), {}, ("keep=-3", RANGE)),
    "keep-abc": (("uniform", "abc"), {}, ("keep='abc'", RANGE)),
    "keep-empty": (("uniform", ""), {}, ("keep=''", RANGE)),
    "keep-true": (("uniform", True), {}, ("keep=True", "bool", RANGE)),
    "keep-nan": (("uniform", float("nan")), {}, ("keep=nan", RANGE)),
    "keep-inf": (("uniform", "inf"), {}, ("inf", RANGE)),
    "keep-list": (("uniform", [0.5]), {}, ("keep=[0.5]", "list")),
    "keep-matrix": (("uniform", torch.ones(2, 2)), {}, ("Tensor", RANGE)),
    "keep-more-than-all": (("uniform", 65), {}, ("keep=65", "64", "possible")),
    "keep-and-prune-ratio": (("uniform", 0.5), {"prune_ratio": 0.5}, ("keep", "prune_ratio")),
    "prune-ratio-1": (("uniform",), {"prune_ratio": 1}, ("prune_ratio=1", "[0, 1)")),
    "prune-ratio-negative": (("uniform",), {"prune_ratio": -0.1}, ("prune_ratio=-0.1", "[0, 1)")),
    "prune-ratio-nan": (("uniform",), {"prune_ratio": float("nan")}, ("prune_ratio=nan", "[0, 1)")),
    "prune-ratio-true": (("uniform",), {"prune_ratio": True}, ("prune_ratio=True",)),
    "layer-too-deep": (("hiprune",), {"object_layer": 4}, ("object_layer=4", "4 layers", "-4 to 3")),
    "layer-too-negative": (("hiprune",), {"deep_layer": -5}, ("deep_layer=-5", "-4 to 3")),
    "layer-1.5": (("hiprune",), {"deep_layer": 1.5}, ("deep_layer=1.5", "(0, 1]")),
    "layer-0.0": (("hiprune",), {"deep_layer": 0.0}, ("deep_layer=0.0", "(0, 1]")),
    "alpha-2": (("hiprune",), {"alpha": 2.0}, ("alpha=2.0", "0 to 1")),
    "alpha-nan": (("hiprune",), {"alpha": float("nan")}, ("alpha=nan", "0 to 1")),
    "start-after-end": (("vtc_cls",), {"start_layer": 3, "end_layer": 1}, ("start_layer=3", "end_layer=1")),
    "unknown-exclude": (("hiprune",), {"exclude": "oficial"}, ("exclude='oficial'", "exact, official")),
    "unknown-scope": (("uniform",), {"scope": "per_batch"}, ("scope='per_batch'", "per_image, per_request, per_tile")),
    "unknown-positions": (("uniform",), {"positions": "renumber"}, ("positions='renumber'", "keep, compact")),
    "unknown-rounding": (("uniform",), {"rounding": "up"}, ("rounding='up'", "ceil, round, floor")),
    "scope-is-a-list": (("uniform",), {"scope": ["per_tile"]}, ("scope=['per_tile']", "per_tile")),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(model, name):
    """Wrong arguments of vtc.patch, and of vtc.patched."""
    args, options, words = ARGUMENTS[name]
    refused(lambda: vtc.patch(model, *args, **options), *words, kind=vtc.ConfigError)
    refused(lambda: vtc.patched(model, *args, **options).__enter__(), *words, kind=vtc.ConfigError)


HEAD = "keep: 0.5\nstages:\n  - method: hiprune\n"
FILES = {
    "empty": ("", ("NoneType", "mapping")),
    "a-list": ("- keep: 0.5\n- stages: []\n", ("list", "mapping")),
    "a-word": ("hiprune", ("str", "mapping")),
    "invalid": ("keep: [0.5\nstages: {", ("not valid", "YAML")),
    "tabs": ("keep:\t0.5\n\tstages: 3", ("not valid", "YAML")),
    "unsafe-tag": ("!!python/object/apply:os.system ['true']", ("not valid (safe) YAML", "os.system")),
    "unsafe-knob": (HEAD + "    alpha: !!python/name:os.system ''\n", ("not valid (safe) YAML",)),
    "stages-missing": ("keep: 0.5\n", ("stages=None", "method")),
    "stages-empty": ("keep: 0.5\nstages: []\n", ("stages=[]", "method")),
    "stages-two": (
        "keep: 0.5\nstages:\n  - method: uniform\n  - method: pool\n",
        ("projector, projector", "at most one at the projector"),
    ),
    "stages-mapping": ("keep: 0.5\nstages: {method: uniform}\n", ("stages={", "list")),
    "stage-without-method": ("keep: 0.5\nstages:\n  - alpha: 0.1\n", ("method",)),
    "unknown-method": ("keep: 0.5\nstages:\n  - method: hiprume\n", ("'hiprume'", "did you mean 'hiprune'")),
    "method-is-a-list": ("keep: 0.5\nstages:\n  - method: [uniform]\n", ("['uniform']", "possible")),
    "no-budget": ("stages:\n  - method: uniform\n", ("budget", "keep or prune_ratio")),
    "two-budgets": ("keep: 0.5\nprune_ratio: 0.5\nstages:\n  - method: uniform\n", ("keep", "prune_ratio")),
    "budget-is-null": ("keep: null\nstages:\n  - method: uniform\n", ("keep=None", "possible")),
    "unknown-key": ("kep: 0.5\nstages:\n  - method: uniform\n", ("'kep'", "did you mean 'keep'")),
    "number-as-key": ("3: 0.5\nkeep: 0.5\nstages:\n  - method: uniform\n", ("3", "possible")),
    "unknown-knob": (HEAD + "    beta: 1\n", ("'beta'", "alpha")),
    "families-list": (HEAD + "families: [llava]\n", ("families=['llava']", "mapping")),
    "families-section-list": (HEAD + "families: {llava: [1]}\n", ("[1]", "mapping")),
    "families-unknown": (HEAD + "families: {lava: {keep: 0.5}}\n", ("'lava'", "did you mean 'llava'")),
    "families-bad-key": (HEAD + "families: {qwen2_vl: {kep: 0.5}}\n", ("'kep'", "did you mean 'keep'")),
    "families-bad-value": (HEAD + "families: {llava: {positions: no}}\n", ("positions=False", "keep, compact")),
    "families-two-budgets": (HEAD + "families: {llava: {keep: 0.5, prune_ratio: 0.5}}\n", ("keep", "prune_ratio")),
}


@pytest.mark.parametrize("name", FILES)
def test_files(model, tmp_path, name):
    """Wrong YAML files."""
    text, words = FILES[name]
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    refused(lambda: vtc.patch(model, path), *words, kind=vtc.ConfigError)
    refused(lambda: vtc.patch(model, str(path)), *words, kind=vtc.ConfigError)


def test_paths(model, tmp_path):
    """A missing file, a directory, a directory with a file's name, binary data, odd names."""
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    refused(lambda: vtc.patch(model, tmp_path / "none.yaml"), "none.yaml", "does not exist")
    refused(lambda: vtc.patch(model, tmp_path), str(tmp_path), "possible")
    refused(lambda: vtc.patch(model, tmp_path / "folder.yaml"), "folder.yaml", "possible")
    refused(lambda: vtc.patch(model, tmp_path / "binary.yaml"), "binary", "YAML")
    refused(lambda: vtc.patch(model, "two\nlines.yaml"), "lines.yaml")
    refused(lambda: vtc.patch(model, "nul\0byte.yaml"), "byte.yaml")


def test_mappings(model):
    """A strategy as a mapping goes through the same checks."""
    refused(lambda: vtc.patch(model, {}), "stages")
    refused(lambda: vtc.patch(model, {"keep": 0.5, "stages": [{"method": None}]}), "None", "possible")
    refused(lambda: vtc.patch(model, {"keep": 2.5, "stages": [{"method": "uniform"}]}), "keep=2.5")


def test_no_supported_model(model):
    """A plain language model, things that are no models, wrapped models, and arguments in the wrong order."""
    inner = build("llava")
    llama = LlamaForCausalLM(LlamaConfig(**TEXT))
    refused(lambda: vtc.patch(llama, "uniform"), "'llama'", "llava", "qwen2_5_vl", kind=vtc.UnsupportedError)
    refused(lambda: vtc.patch("llava", "uniform"), "str", "possible", kind=vtc.UnsupportedError)
    refused(lambda: vtc.patch(None, "uniform"), "NoneType", "possible", kind=vtc.UnsupportedError)
    refused(lambda: vtc.patch(nn.Linear(2, 2), "uniform"), "Linear", "possible", kind=vtc.UnsupportedError)
    refused(lambda: vtc.patch(nn.DataParallel(inner), "uniform"), "DataParallel", kind=vtc.UnsupportedError)
    refused(lambda: vtc.patch(torch.compile(inner), "uniform"), "wraps a model", kind=vtc.UnsupportedError)
    refused(lambda: vtc.patch(inner.model, "uniform"), "LlavaModel", "possible", kind=vtc.UnsupportedError)
    refused(lambda: vtc.patch("uniform", model), "possible")


def test_unsupported_towers(model):
    """A vision tower that is not understood, and features that are no full grid."""
    small = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                 patch_size=8)  # fmt: skip
    text = LlamaConfig(**{**TEXT, "num_hidden_layers": 1})
    options = dict(text_config=text, image_token_id=120)
    other = LlavaForConditionalGeneration(LlavaConfig(vision_config={"model_type": "vit", **small}, **options))
    refused(lambda: vtc.patch(other, "uniform"), "'vit'", "clip_vision_model", kind=vtc.UnsupportedError)
    full = LlavaConfig(vision_config=CLIPVisionConfig(**small), vision_feature_select_strategy="full", **options)
    whole = LlavaForConditionalGeneration(full)
    refused(lambda: vtc.patch(whole, "uniform"), "'full'", "default", kind=vtc.UnsupportedError)


def test_competing_tiles_for_a_method_that_needs_a_raster():
    """hiprune's neighbours need one grid; a method without such a need may let the tiles compete."""
    tiled = model_of("llava_next")
    before = state(tiled)
    refused(lambda: vtc.patch(tiled, "hiprune", scope="per_image"), "per_image", "raster", "possible: per_tile")
    assert state(tiled) == before
    with vtc.patched(tiled, "vtc_cls", keep=0.5, scope="per_image"):
        pass


def test_report_without_anything_to_report(model):
    """Before patching, before an image, and with keep=1.0."""
    refused(lambda: vtc.report(model), "not patched", "vtc.patch", kind=vtc.ConfigError)
    with vtc.patched(model, "uniform", keep=0.5):
        refused(lambda: vtc.report(model), "no image", kind=vtc.ConfigError)
        forward(model, inputs_of("llava", images=(0,)))
        refused(lambda: vtc.report(model), "no image", kind=vtc.ConfigError)
    with vtc.patched(model, "uniform", keep=1.0):
        forward(model, inputs_of("llava", images=(1,)))
        refused(lambda: vtc.report(model), "keep=1.0", kind=vtc.ConfigError)


def test_refused_patch_leaves_the_former_one(model):
    """A bad second patch does not take the first one off."""
    inputs = inputs_of("llava", images=(1,))
    with vtc.patched(model, "uniform", keep=0.5):
        expected, before = forward(model, inputs).logits, state(model)
        refused(lambda: vtc.patch(model, "hiprune", object_layer=9), "object_layer=9")
        refused(lambda: vtc.patch(model, "hiprune", keep=0), "keep=0")
        assert state(model) == before
        assert torch.equal(forward(model, inputs).logits, expected)
        refused(lambda: vtc.load_strategy("uniform", "llawa"), "'llawa'", "did you mean 'llava'")


def test_unpatch_of_an_unpatched_model_does_nothing(model):
    """Removing what is not there is no error."""
    before = state(model)
    assert vtc.unpatch(model) is model
    assert state(model) == before
