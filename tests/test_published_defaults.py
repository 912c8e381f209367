"""The YAML defaults are the published settings: layers, positions, rounding, at the published depths."""

import pytest

from vtc.budget import Budget
from vtc.config import resolve
from vtc.signals import Encoder


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
    assert resolve("hiprune", "qwen2_5_vl", keep=ratio).stages[0].budget.count(tokens) == kept


@pytest.mark.parametrize(("total", "tiles", "each"), [(640, 5, 128), (320, 3, 106), (160, 4, 40)])
def test_llava_next_splits_its_budget_over_tiles_rounding_down(total, tiles, each):
    assert resolve("hiprune", "llava_next", keep=total).stages[0].budget.quotas([[576] * tiles]) == [[each] * tiles]


@pytest.mark.parametrize(("keep", "tokens", "kept"), [(0.07, 100, 7), (0.25, 577, 145), (1e-3, 64, 1), (192, 99, 99)])
def test_fractions_are_exact(keep, tokens, kept):
    assert Budget(keep).count(tokens) == kept
