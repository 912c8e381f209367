"""The YAML defaults are the published settings: layers, positions, rounding, at the published depths."""

import pytest

from vtc.config.allocation import Allocation
from vtc.config.resolve import resolve
from vtc.core.budget import Budget
from vtc.core.signals import Decoder, Encoder


def encoder(family: str, depth: int, global_layers=None) -> Encoder:
    return Encoder(family, depth, family.startswith("llava"), global_layers or tuple(range(depth)))


@pytest.mark.parametrize(
    ("strategy", "family", "depth", "layers", "positions"),
    [
        ("hiprune", "llava", 24, [8, 22], "compact"),
        ("hiprune", "llava_next", 24, [8, 22], "compact"),
        ("hiprune", "qwen2_vl", 32, [15, 31], "keep"),
        ("hiprune", "qwen2_5_vl", 32, [15, 31], "keep"),
        ("vtc_cls", "llava", 24, [20, 21, 22], "compact"),
    ],
)
def test_layers_and_positions(strategy, family, depth, layers, positions):
    config = resolve(strategy, family)
    assert [signal.layer for signal in config.stages[0].stage.needs(encoder(family, depth))] == layers
    assert config.stages[0].positions == positions


def test_vtc_cls_counts_global_layers_on_qwen2_5_vl():
    needs = resolve("vtc_cls", "qwen2_5_vl").stages[0].stage.needs(encoder("qwen2_5_vl", 32, (7, 15, 23, 31)))
    assert [signal.layer for signal in needs] == [15, 23, 31]


@pytest.mark.parametrize(("ratio", "tokens", "kept"), [(0.334, 280, 94), (0.112, 180, 20), (0.223, 280, 62)])
def test_hiprune_rounds_on_qwen_as_published(ratio, tokens, kept):
    assert resolve("hiprune", "qwen2_5_vl", keep=ratio).allocate().projector.count(tokens) == kept


@pytest.mark.parametrize(("total", "tiles", "each"), [(640, 5, 128), (320, 3, 106), (160, 4, 40)])
def test_llava_next_splits_its_budget_over_tiles_rounding_down(total, tiles, each):
    assert resolve("hiprune", "llava_next", keep=total).allocate().projector.quotas([[576] * tiles]) == [[each] * tiles]


@pytest.mark.parametrize(("keep", "tokens", "kept"), [(0.07, 100, 7), (0.25, 577, 145), (1e-3, 64, 1), (192, 99, 99)])
def test_fractions_are_exact(keep, tokens, kept):
    assert Budget(keep).count(tokens) == kept


INSIDE = [
    ("fastv", "llava", 32, 576, [(2, 288)], "keep"),
    ("fastv", "llava_next", 32, 2880, [(2, 1440)], "keep"),
    ("fastv", "qwen2_5_vl", 28, 1000, [(2, 500)], "keep"),
    ("pyramiddrop", "llava", 32, 576, [(8, 288), (16, 144), (24, 72)], "compact"),
    ("pyramiddrop", "llava_next", 32, 2880, [(8, 1440), (16, 720), (24, 360)], "compact"),
    ("pyramiddrop", "qwen2_vl", 28, 1000, [(7, 500), (14, 250), (21, 125)], "keep"),
    ("transprune", "llava", 32, 576, [(7, 504), (9, 360), (12, 72)], "compact"),
    ("transprune", "llava_next", 32, 2880, [(7, 2520), (9, 1800), (12, 360)], "compact"),
    ("transprune", "qwen2_vl", 28, 1000, [(7, 875), (9, 625), (12, 125)], "keep"),
    ("transprune", "qwen2_5_vl", 28, 1000, [(7, 875), (9, 625), (12, 125)], "keep"),
    ("visiondrop", "llava", 32, 576, [(0, 48), (8, 35), (16, 26), (24, 19)], "compact"),
    ("hiprune_transprune", "llava", 32, 576, [(0, 288), (7, 144), (9, 72), (12, 36)], "compact"),
]


@pytest.mark.parametrize(("strategy", "family", "depth", "tokens", "drops", "positions"), INSIDE)
def test_drops_inside_the_language_model(strategy, family, depth, tokens, drops, positions):
    """(layer, tokens left); what a stage at the projector leaves stands at layer 0."""
    config = resolve(strategy, family)
    allocation = Allocation(config, Decoder(family, depth))
    entered = tokens if allocation.projector is None else allocation.projector.count(tokens)
    found = [
        (step.layer, left) for step, left in zip(allocation.steps, allocation.counts(tokens, entered), strict=True)
    ]
    assert ([] if allocation.projector is None else [(0, entered)]) + found == drops
    assert {stage.positions for stage in config.stages} == {positions}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_transprune_on_28_layers_sees_the_published_share(family):
    """45.09 % of the tokens on average over 28 layers; FastV 53.57 %."""
    decoder = Decoder(family, 28)
    assert round(Allocation(resolve("transprune", family), decoder).mean(), 4) == 0.4509
    assert round(Allocation(resolve("fastv", family), decoder).mean(), 4) == 0.5357


def test_todre_drops_at_the_published_threshold():
    assert [stage.stage.tau for stage in resolve("todre").decoder] == [0.1]
