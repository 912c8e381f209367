"""Strategies of several stages as data: composing, dumps, overrides by method, options and budgets of each stage."""

from dataclasses import replace

import pytest
import yaml

import vtc
from tests.helpers import CHANGING, refused
from vtc.config.resolve import resolve
from vtc.config.source import parts_of
from vtc.config.strategy import StrategyConfig
from vtc.strategies.fastv import FastV
from vtc.strategies.hiprune import HiPrune
from vtc.strategies.transprune import TransPrune
from vtc.strategies.visiondrop import VisionDrop

COMPOSED = [
    "hiprune+transprune",
    "hiprune+visiondrop_inside",
    "uniform+fastv+pyramiddrop",
    "fastv+transprune",
    "visiondrop+fastv",
    "pool+pyramiddrop",
]
families = pytest.mark.parametrize("family", [None, *vtc.families()])
INSIDE = {"stages": [{"method": "visiondrop"}]}
TOP_AND_STAGE = {
    "positions": "keep",
    "stages": [
        {"method": "hiprune", "keep": 0.5, "scope": "per_tile", "rounding": "floor"},
        {
            "method": "transprune",
            "keep": 200,
            "positions": "compact",
            "ratios": [0.9, 0.5, 0.1],
            "accumulate": [0.1, 9],
        },
    ],
}


def composed(name: str) -> list:
    """The parts of a composition; `visiondrop_inside` is VisionDrop's second method alone."""
    return [INSIDE if part == "visiondrop_inside" else part for part in name.split("+")]


def methods(config: StrategyConfig) -> list[str]:
    return [stage.method for stage in config.stages]


def comes_back(config: StrategyConfig, path, family) -> None:
    """The dump is plain YAML and gives the same strategy for the same or any family."""
    text = yaml.safe_dump(config.dump())
    path.write_text(text, encoding="utf-8")
    again = vtc.load_strategy(path, family)
    assert again.dump() == config.dump() == yaml.safe_load(text)
    assert (again.keep, again.stages) == (config.keep, config.stages)
    assert [type(s.keep) for s in again.stages] == [type(s.keep) for s in config.stages]
    assert vtc.load_strategy(str(path)).stages == config.stages
    assert vtc.load_strategy(config.dump(), "qwen2_vl").stages == config.stages


@pytest.mark.product
@families
@pytest.mark.parametrize("keep", [None, 0.2, 1, 1.0, 150])
@pytest.mark.parametrize("strategy", vtc.strategies())
def test_dumps_of_shipped_strategies_come_back(strategy, keep, family, tmp_path):
    """With the file's own budget, and with a fraction or a number for the whole."""
    if strategy in CHANGING and not (keep is None or isinstance(keep, float) and keep == 1.0):
        pytest.skip("drops nothing, so it has no budget; refused in test_attention_stage.py")
    config = vtc.load_strategy(strategy, family, **({} if keep is None else {"keep": keep}))
    assert config.keep == keep or keep is None
    comes_back(config, tmp_path / f"{strategy}.yaml", family)
    assert vtc.load_strategy(tmp_path / f"{strategy}.yaml", family) == config


@families
@pytest.mark.parametrize("keep", [None, 0.2, 64])
@pytest.mark.parametrize("name", COMPOSED)
def test_dumps_of_compositions_come_back(name, keep, family, tmp_path):
    """Each stage with the options of its own file and family."""
    config = vtc.load_strategy(composed(name), family, **({} if keep is None else {"keep": keep}))
    comes_back(config, tmp_path / "mine.yaml", family)


def test_a_dump_of_options_per_stage(tmp_path):
    """What differs between stages stands in the stages, what is equal at the top; null knobs too."""
    config = resolve(TOP_AND_STAGE)
    comes_back(config, tmp_path / "mine.yaml", None)
    first, second = config.dump()["stages"]
    assert (first["positions"], second["positions"]) == ("keep", "compact")
    assert (first["keep"], second["keep"]) == (0.5, 200)
    assert second["accumulate"] == [0.1, 9]
    assert "positions" not in config.dump()
    assert resolve("hiprune+transprune").dump()["positions"] == "compact"
    assert resolve("transprune").dump()["stages"][0]["ratios"] is None


def test_composing_by_list_and_by_plus(tmp_path, monkeypatch):
    """Names, paths and mappings; the name says what it is; spaces do not matter; a file may have a plus in its name."""
    by_text, by_list = resolve("hiprune+transprune"), resolve(["hiprune", "transprune"])
    assert by_text == by_list == resolve(" hiprune + transprune") == resolve(("hiprune", "transprune"))
    assert by_text.name == "hiprune+transprune"
    assert methods(by_text) == ["hiprune", "transprune"]
    assert by_text.projector is by_text.stages[0]
    assert by_text.decoder == by_text.stages[1:]
    assert by_text.description == f"{resolve('hiprune').description} Then: {resolve('transprune').description}"
    mine = {"keep": 0.5, "stages": [{"method": "uniform"}]}
    assert methods(resolve([mine, "fastv"])) == ["uniform", "fastv"]
    path = tmp_path / "a+b.yaml"
    path.write_text(yaml.safe_dump(mine), encoding="utf-8")
    assert resolve(str(path)).stages == resolve(mine).stages
    assert resolve([path, "fastv"]).name == "a+b+fastv"
    assert resolve(["hiprune"]) == resolve("hiprune")
    monkeypatch.chdir(tmp_path)
    assert parts_of("a+b.yaml") == ["a+b.yaml"]
    assert parts_of("a+" * 5000 + "b") == [*["a"] * 5000, "b"]


@families
def test_parts_keep_their_own_sections(family):
    """What a file says for a family holds for its stages alone."""
    config, alone = resolve("hiprune+transprune", family), [resolve(n, family) for n in ("hiprune", "transprune")]
    assert config.keep is None
    assert config.projector == replace(alone[0].projector, keep=alone[0].keep)
    assert config.decoder == alone[1].decoder
    if family == "llava_next":
        assert config.projector.scope == "per_tile"
    if family == "qwen2_vl":
        assert (config.projector.stage.object_layer, config.projector.rounding) == (0.5, "round")
        assert config.decoder[0].stage.layers == (0.25, 0.3214, 0.4286)


def test_budgets_of_parts():
    """Each part brings its own; one for the whole replaces them; METHOD.keep is that of one stage."""
    parts_ = [{"keep": 0.5, "stages": [{"method": "uniform"}]}, {"keep": 0.6, "stages": [{"method": "fastv"}]}]
    assert [s.keep for s in resolve(parts_).stages] == [0.5, 0.6]
    whole = resolve(parts_, keep=0.3)
    assert (whole.keep, [s.keep for s in whole.stages]) == (0.3, [None, None])
    assert resolve(parts_, prune_ratio=0.7) == whole
    changed = resolve(parts_, **{"uniform.keep": 100, "fastv.prune_ratio": 0.25})
    assert (changed.keep, [s.keep for s in changed.stages]) == (None, [100, 0.75])
    assert [s.keep for s in resolve("hiprune+transprune").stages] == [0.25, None]
    without = [{"stages": [{"method": "uniform"}]}, "fastv"]
    assert resolve(without, keep=0.3).keep == 0.3
    refused(lambda: resolve(without), "names no budget", "keep or prune_ratio")
    two = {"keep": 0.3, "stages": [{"method": "uniform"}, {"method": "fastv"}]}
    refused(lambda: resolve([two, "pyramiddrop"]), "one keep for 2 stages", "possible: a keep in its stages")


def test_the_later_budget_counts():
    """METHOD.keep after one for the whole takes that away, as the whole's takes those of the stages."""
    first = {"method": "uniform"}
    raw = {"keep": 0.3, "stages": [first, {"method": "fastv"}], "families": {"llava": {"uniform.keep": 0.5}}}
    assert resolve(raw).keep == 0.3
    section = resolve(raw, "llava")
    assert (section.keep, [s.keep for s in section.stages]) == (None, [0.5, None])
    assert resolve(raw, "llava", keep=0.2).keep == 0.2
    assert resolve("visiondrop", keep=0.05).projector.keep is None
    refused(lambda: resolve({"keep": 0.3, "stages": [{**first, "keep": 0.5}]}), "a keep of its own", "one of them")
    refused(lambda: resolve("hiprune+fastv", keep=0.3, **{"hiprune.keep": 0.5}), "keep and hiprune.keep", "one of them")
    refused(
        lambda: resolve("hiprune+fastv", **{"fastv.keep": 0.5, "fastv.prune_ratio": 0.5}),
        "fastv: keep and prune_ratio are both given",
    )


def test_overrides_by_method():
    """METHOD.KNOB wherever there are several stages; a plain knob where one stage knows it."""
    knobs = {"hiprune.alpha": 0.3, "transprune.alpha": 0.7, "transprune.layers": [1, 2, 3], "deep_layer": -3, "K": 5}
    config = resolve("hiprune+fastv+transprune", **knobs)
    assert config.projector.stage == HiPrune(alpha=0.3, deep_layer=-3)
    assert config.decoder[0].stage == FastV(K=5)
    assert config.decoder[1].stage == TransPrune(alpha=0.7, layers=(1, 2, 3))
    message = refused(lambda: resolve("hiprune+transprune", alpha=0.3), "alpha=0.3 could belong to several stages")
    assert message.endswith("possible: hiprune.alpha, transprune.alpha")
    message = refused(lambda: resolve("visiondrop", contextual=0.1), "contextual=0.1 could belong to several")
    assert message.endswith("possible: visiondrop_projector.contextual, visiondrop.contextual")
    assert resolve("visiondrop", **{"visiondrop.contextual": [0, 0, 0]}).decoder[0].stage.contextual == (0.0, 0.0, 0.0)
    twice = resolve([{"stages": [{"method": "fastv", "K": 3}]}, {"stages": [{"method": "fastv", "K": 9}]}])
    assert [s.stage.K for s in twice.stages] == [3, 9]
    for key in ("K", "fastv.K"):
        refused(lambda key=key: resolve("fastv+fastv", **{key: 2}), f"{key}=2", "possible: K in the stages of a YAML")


def test_tuple_knobs_come_from_lists():
    """Lists of YAML are tuples of the right types; an int stays an int where both are possible."""
    stage = resolve("transprune", layers=[2, 0.5, 30], ratios=[1, 0.5, 0.1], accumulate=[1, 0.5]).decoder[0].stage
    assert (stage.layers, stage.ratios, stage.accumulate) == ((2, 0.5, 30), (1.0, 0.5, 0.1), (1, 0.5))
    assert [type(v) for v in stage.layers] == [int, float, int]
    assert type(stage.ratios[0]) is float
    assert resolve("transprune", ratios=None).decoder[0].stage.ratios is None
    one = resolve("visiondrop", layers=[5], ratios=[0.5], **{"visiondrop.contextual": (0.1,)}).decoder[0].stage
    assert one == VisionDrop(layers=(5,), ratios=(0.5,), contextual=(0.1,))


def test_positions_of_each_stage():
    """At the top for all, in a stage or as METHOD.positions for one, whatever the order of the overrides."""

    def positions(strategy, **overrides):
        return [s.positions for s in resolve(strategy, **overrides).stages]

    assert positions("hiprune+fastv") == ["compact", "keep"]
    assert positions("hiprune+fastv", positions="keep") == ["keep", "keep"]
    assert positions("hiprune+fastv", **{"fastv.positions": "compact"}) == ["compact", "compact"]
    mixed = {"hiprune.positions": "keep", "positions": "compact"}
    assert positions("hiprune+fastv", **mixed) == positions("hiprune+fastv", **dict(reversed(mixed.items())))
    assert positions("hiprune+fastv", **mixed) == ["keep", "compact"]
    assert positions(TOP_AND_STAGE) == ["keep", "compact"]
    assert positions(TOP_AND_STAGE, positions="keep") == ["keep", "keep"]
    assert positions({"stages": [{"method": "fastv"}, {"method": "pyramiddrop", "positions": "keep"}]}) == [
        "compact",
        "keep",
    ]


def test_scope_at_the_top_is_meant_for_the_projector():
    """Stages inside the language model rank whole images, and say so where the option can only be meant for them."""
    config = resolve("hiprune+transprune", scope="per_tile", rounding="floor")
    assert (config.projector.scope, config.projector.rounding) == ("per_tile", "floor")
    assert (config.decoder[0].scope, config.decoder[0].rounding) == ("per_image", "ceil")
    assert set(config.decoder[0].options()) == {"positions"}
    next_ = resolve("visiondrop", "llava_next")
    assert (next_.projector.scope, next_.decoder[0].scope) == ("per_tile", "per_image")
    whole = resolve("visiondrop", **{"visiondrop_projector.scope": "per_request"})
    assert whole.projector.scope == "per_request"
    for strategy, key in (("fastv", "scope"), ("fastv+transprune", "scope"), ("hiprune+fastv", "fastv.scope")):
        words = "scope='per_tile'", "fastv ranks whole images", "possible: scope=per_image"
        refused(lambda s=strategy, k=key: resolve(s, **{k: "per_tile"}), *words)
    tiles = {"scope": "per_tile", "stages": [{"method": "fastv"}]}
    refused(lambda: resolve(tiles), "scope='per_tile'", "fastv ranks whole images")
    refused(lambda: resolve(["hiprune", tiles]), "scope='per_tile'", "fastv ranks whole images")
    assert resolve({**tiles, "scope": "per_image"}).decoder[0].scope == "per_image"


def test_order_of_stages():
    """At most one at the projector, and it comes first."""
    for strategy in ("fastv+hiprune", "hiprune+uniform", "hiprune+visiondrop", "fastv+visiondrop"):
        refused(lambda s=strategy: resolve(s), f"'{strategy}'", "projector", "possible: at most one at the projector")
    assert methods(resolve("visiondrop+fastv")) == ["visiondrop_projector", "visiondrop", "fastv"]
    assert methods(resolve("fastv+pyramiddrop+transprune")) == ["fastv", "pyramiddrop", "transprune"]
