"""What can be served, how a config says it, and what the plugin refuses; none of it needs vLLM."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    SiglipVisionConfig,
)

import vtc.vllm as plugin
from vtc.core.errors import ConfigError, UnsupportedError, VtcError
from vtc.core.signals import ClsAttention, Features
from vtc.demo import MODEL_DIR
from vtc.patches import FAMILIES
from vtc.strategies.hiprune import HiPrune
from vtc.vllm.capability import table
from vtc.vllm.refusals import refuse_engine, refuse_processing
from vtc.vllm.settings import ServedStrategy, overrides, packed, unpacked
from vtc.vllm.skeleton import architecture, loaded_layers, served


def config_of(family: str):
    """The config that transformers gives a model of the family by default."""
    return AutoConfig.for_model(FAMILIES[family].model_types[0])


def read_back(config, found: dict) -> ServedStrategy:
    """The settings in a config after vLLM's way of overriding it and of sending it to another process."""
    config.update(json.loads(json.dumps(found)))
    return ServedStrategy.of(pickle.loads(pickle.dumps(config)))


@pytest.mark.parametrize("family", served())
def test_overrides_are_read_back(family):
    """What `overrides` writes survives JSON and pickling, with the architecture of the family."""
    found = overrides(config_of(family), "hiprune", "0.25", max_keep=0.5, alpha=0.2)
    settings = read_back(config_of(family), found)
    assert found["architectures"] == [architecture(family)]
    assert settings.keep == 0.25
    assert settings.max_keep == 0.5
    assert settings.stage.stage.alpha == 0.2
    assert settings.stage.stage.exclude == "exact"
    assert settings.family.name == family
    assert settings.strategy.name == "hiprune"


def test_short_forms_by_hand():
    """A name, a keep and knobs are enough; keep may be left to the strategy."""
    short = read_back(LlavaConfig(), {"vtc": {"strategy": "hiprune", "keep": 144, "knobs": {"alpha": 0.3}}})
    assert (short.keep, short.max_keep, short.stage.stage.alpha) == (144, 144, 0.3)
    assert read_back(LlavaConfig(), {"vtc": {}}).keep == 0.25


def test_the_fingerprint_holds_what_changes_the_selection():
    """It differs with strategy, knob, rounding and positions; not with the keep, which travels with each request."""

    def mark(strategy="hiprune", keep=0.25, **knobs):
        return read_back(Qwen2_5_VLConfig(), overrides(Qwen2_5_VLConfig(), strategy, keep, **knobs)).fingerprint

    others = [mark("vtc_cls"), mark(alpha=0.2), mark(rounding="ceil"), mark(positions="compact"), mark(object_layer=7)]
    assert len({mark(), *others}) == 6
    assert mark() == mark(keep=0.5)


@pytest.mark.parametrize("keep", [0.25, 1.0, 1, 64])
def test_a_keep_as_one_number(keep):
    """One token and everything stay apart."""
    back = unpacked(packed(keep))
    assert back == keep
    assert type(back) is type(keep)


REFUSED = [
    (dict(strategy="fastv"), "inside the language model"),
    (dict(strategy="hiprune_transprune"), "inside the language model"),
    (dict(strategy="mmtok"), "reads the question"),
    (dict(strategy="cdpruner"), "reads the question"),
    (dict(strategy="todre"), "inside the language model"),
    (dict(strategy="nope"), "unknown strategy 'nope'"),
    (dict(keep=1.5), "keep=1.5 is out of range"),
    (dict(keep=577), "keep=577 is more than the 576"),
    (dict(max_keep=0), "keep=0 is out of range"),
    (dict(keep=64, scope="per_request"), "other images of its prompt"),
    (dict(positions="keep"), "without gaps; possible: positions=compact"),
    (dict(exclude="official"), "possible: exclude=exact"),
    (dict(deep_layer=-1), "layer 23 of the vision tower is not loaded"),
    (dict(alfa=1), "did you mean 'alpha'"),
]


@pytest.mark.parametrize("given, message", REFUSED, ids=[str(given) for given, _ in REFUSED])
def test_refused_in_one_line(given, message):
    """Everything that cannot be served says so before a server starts, and what is possible."""
    with pytest.raises(VtcError, match=re.escape(message)) as caught:
        overrides(LlavaConfig(), **given)
    assert "\n" not in str(caught.value)
    assert "possible: " in str(caught.value)


def test_adaptive_counts_are_refused(monkeypatch):
    """A method whose number of kept tokens depends on the picture (none is shipped that acts at the projector)."""
    monkeypatch.setattr(HiPrune, "adaptive", True)
    with pytest.raises(UnsupportedError, match="depends on the picture, but vLLM must know it before"):
        overrides(LlavaConfig(), "hiprune")


def test_a_stage_of_a_composition_alone():
    """todre's first stage can be served by itself, on a layer that vLLM loads."""
    stages = {"keep": 0.25, "stages": [{"method": "todre_projector", "layer": -2}]}
    assert read_back(LlavaConfig(), overrides(LlavaConfig(), stages)).stage.method == "todre_projector"


def test_other_models_and_broken_settings():
    """A model without a pruned form, and overrides that do not say how."""
    with pytest.raises(UnsupportedError, match="'siglip_vision_model' cannot be served pruned; possible: llava"):
        overrides(SiglipVisionConfig())
    with pytest.raises(ConfigError, match="vtc=None; possible: hf_overrides"):
        ServedStrategy.of(LlavaConfig())
    with pytest.raises(ConfigError, match="did you mean 'max_keep'"):
        read_back(LlavaConfig(), {"vtc": {"maxkeep": 1}})


def test_loaded_layers():
    """vLLM loads CLIP up to the layer that is looked at, in both ways to name it."""
    assert loaded_layers(LlavaConfig(vision_feature_layer=-2), 24) == 23
    assert loaded_layers(LlavaConfig(vision_feature_layer=5), 24) == 5
    assert loaded_layers(LlavaConfig(vision_feature_layer=[-2, -5]), 24) == 23
    assert loaded_layers(Qwen2VLConfig(), 32) == 32


def test_counts_at_published_sizes():
    """576 tokens at a quarter; a request may ask for less, not for more than the server's largest keep."""
    settings = read_back(LlavaConfig(), overrides(LlavaConfig(), "hiprune", 0.25, max_keep=0.5))
    (layout,) = settings.family.image_layouts({"pixel_values": SimpleNamespace(shape=(1, 3, 336, 336))})
    assert [settings.count(layout, keep) for keep in (0.25, 0.1, 64, 0.5)] == [144, 58, 64, 288]
    with pytest.raises(ConfigError, match="keep=0.75 keeps 432 of the 576 tokens of an image, more than the 288"):
        settings.count(layout, 0.75)


def test_request_keeps_are_checked():
    """Text from JSON is understood; anything else is one clear line."""
    settings = read_back(LlavaConfig(), overrides(LlavaConfig(), "hiprune", 0.25, max_keep=1.0))
    assert settings.request_keep(None) == 0.25
    assert settings.request_keep("0.5") == 0.5
    for bad in (0, 1.01, -1, "much", True, [0.5], 600):
        with pytest.raises(ConfigError, match="possible: "):
            settings.request_keep(bad)


def engine(**changed) -> SimpleNamespace:
    """A VllmConfig as far as the refusals look at it."""
    mm = SimpleNamespace(mm_encoder_tp_mode="weights", enable_mm_embeds=False, video_pruning_rate=None)
    rows = dict(
        model_config=SimpleNamespace(multimodal_config=mm), parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        compilation_config=SimpleNamespace(), lora_config=None, speculative_config=None,
    )  # fmt: skip
    for path, value in changed.items():
        *way, name = path.split("__")
        place = rows
        for step in way:
            place = place[step] if isinstance(place, dict) else getattr(place, step)
        place.update({name: value}) if isinstance(place, dict) else setattr(place, name, value)
    return SimpleNamespace(**rows)


MM = "model_config__multimodal_config__"
OPTIONS = {
    f"{MM}mm_encoder_tp_mode": "data",
    f"{MM}enable_mm_embeds": True,
    f"{MM}video_pruning_rate": 0.5,
    f"{MM}mm_processor_kwargs": {"vtc_keep": 0.5},
    "compilation_config__compile_mm_encoder": True,
    "compilation_config__cudagraph_mm_encoder": True,
    "parallel_config__pipeline_parallel_size": 2,
    "speculative_config": object(),
    "lora_config": SimpleNamespace(enable_tower_connector_lora=True),
    "ec_transfer_config": object(),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_cannot_go_with_pruning(option):
    """Each is refused by its name; without it the engine is accepted."""
    needs = (ClsAttention(3),)
    refuse_engine(engine(), needs)
    with pytest.raises(UnsupportedError, match=option.split("__")[-1].replace("_config", ".*")) as caught:
        refuse_engine(engine(**{option: OPTIONS[option]}), needs)
    assert "possible: " in str(caught.value)


def test_whole_images_on_a_rank_are_fine_for_strategies_that_look_at_no_attention():
    """divprune reads the projected features, which every rank has."""
    refuse_engine(engine(**{f"{MM}mm_encoder_tp_mode": "data"}), (Features(),))
    refuse_processing(None)


def test_register_is_idempotent(monkeypatch):
    """Called in every process, more than once: each architecture is registered once, lazily by name."""
    known, calls = [], []
    registry = SimpleNamespace(
        get_supported_archs=lambda: known, register_model=lambda *row: (known.append(row[0]), calls.append(row))
    )
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0", ModelRegistry=registry))
    plugin.register()
    plugin.register()
    assert calls == list(plugin.models().items())
    assert set(plugin.models()) == {architecture(family) for family in served()}


def test_a_family_says_by_what_it_is_served(monkeypatch):
    """A new family's class is registered, and has a column in the table; one built on it has neither."""

    class New(FAMILIES["llava"]):
        served, published = "elsewhere.new:VtcNewModel", FAMILIES["llava"].published

    class Later(New):
        pass

    monkeypatch.setitem(FAMILIES._items, "new", New)
    monkeypatch.setitem(FAMILIES._items, "later", Later)
    assert plugin.models()["VtcNewModel"] == "elsewhere.new:VtcNewModel"
    assert table().splitlines()[0] == "| strategy | llava | llava_next | new | qwen2_5_vl | qwen2_vl |"


def test_versions():
    """The range that was tried, builds with a suffix included."""
    assert [plugin.tested(v) for v in ("0.29.1", "0.30.0", "0.32.0+cpu", "0.33.2", "0.34.0", "1.0.0")] == [
        False, True, True, True, False, False,
    ]  # fmt: skip


def test_vllm_is_imported_only_where_it_runs():
    """Of the plugin, only what vLLM itself loads imports vLLM; the rest works without."""
    classes = {FAMILIES[family].served.partition(":")[0].rpartition(".")[2] for family in served()}
    inside = {"compat", "pruned_model", *classes}
    files = sorted(Path(plugin.__file__).parent.glob("*.py"))
    found = {file.stem for file in files if re.search(r"^(from|import) vllm\b", file.read_text(), re.MULTILINE)}
    assert found == inside


def test_importing_the_plugin_loads_no_vllm():
    """Nor does reading settings; and `import vtc` does not load the plugin."""
    code = (
        "import sys, vtc; assert not [m for m in sys.modules if m.startswith('vtc.vllm')];"
        "import vtc.vllm, vtc.vllm.settings, vtc.vllm.processing, vtc.vllm.selecting;"
        "assert 'vllm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(plugin.__file__).parents[2], check=True)


def test_the_bundled_model_can_be_served():
    """Its config names an architecture, which vLLM goes by, and is served with the one of ours."""
    config = AutoConfig.from_pretrained(MODEL_DIR)
    assert config.architectures == [architecture("llava").removeprefix("Vtc")]
    assert isinstance(config.vision_config, CLIPVisionConfig)
    assert overrides(config)["architectures"] == [architecture("llava")]
