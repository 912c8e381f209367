"""Strategies as data: dumps that come back the same, overrides, family sections, `--set`; exact budgets."""

import dataclasses
import math
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc
from tests.test_house import run_python
from vtc.config.knobs import as_lists, parse_set
from vtc.config.resolve import resolve
from vtc.core.budget import Budget, keep_from_prune_ratio, parse_keep
from vtc.patches import FAMILIES
from vtc.patches._family import Family
from vtc.strategies import METHODS, shipped

STRATEGIES = vtc.strategies()
INLINE = {"keep": 0.5, "stages": [{"method": "hiprune", "alpha": 0.3}]}
fractions = st.integers(1, 1000).map(lambda n: n / 1000)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shipped_files_state_departures_only(strategy):
    """A shipped YAML repeats no default of a method or of a strategy that it refers to, and no positions that a family
    has anyway; the dump has all."""
    raw = yaml.safe_load(shipped()[strategy].read_text(encoding="utf-8"))
    dumped = vtc.load_strategy(strategy).dump()["stages"]
    for stage, whole in zip(raw["stages"], dumped, strict=True):
        defaults = {key: as_lists(value) for key, value in dataclasses.asdict(METHODS[whole["method"]]()).items()}
        assert set(defaults) <= set(whole)
        if "strategy" in stage:
            part = vtc.load_strategy(stage["strategy"])
            defaults |= {"keep": part.keep, **part.dump()["stages"][0]}
        assert not [key for key in stage if key in defaults and stage[key] == defaults[key]]
        assert {key: whole[key] for key in stage if key in whole} == {k: v for k, v in stage.items() if k in whole}
    assert raw.get("positions") != "compact"
    assert not [name for name, section in raw.get("families", {}).items() if "positions" in section]
    assert raw["description"]


def test_positions_that_nothing_states_are_the_familys(monkeypatch):
    """Kept with M-RoPE, also in a family that is new; what a file states for all holds for every family."""

    class Turning(Family):
        mrope = True

    class Straight(Family):
        pass

    monkeypatch.setitem(FAMILIES._items, "turning", Turning)
    monkeypatch.setitem(FAMILIES._items, "straight", Straight)

    def positions(strategy, family, **overrides):
        return [stage.positions for stage in resolve(strategy, family, **overrides).stages]

    assert {name: positions(INLINE, name) for name in FAMILIES} == {
        name: ["keep" if FAMILIES[name].mrope else "compact"] for name in FAMILIES
    }
    assert positions("hiprune_transprune", "turning") == ["keep", "keep"]
    assert positions("hiprune+fastv", "straight") == ["compact", "keep"]
    assert positions({**INLINE, "positions": "compact"}, "turning") == ["compact"]
    assert positions("hiprune", "turning", positions="compact") == ["compact"]
    assert positions(INLINE, None) == ["compact"]


def test_every_method_has_a_strategy():
    """No method without a shipped file, and the other way round."""
    used = {stage["method"] for name in STRATEGIES for stage in vtc.load_strategy(name).dump()["stages"]}
    assert sorted(used) == METHODS.names()


def test_every_method_stands_in_the_notice():
    """NOTICE has a line with paper, code and licence for each method that exists, one for both stages of one paper."""
    notice = (Path(__file__).resolve().parent.parent / "NOTICE").read_text(encoding="utf-8")
    rows = [line.split() for line in notice.splitlines() if line[:1].islower()]
    present = {row[0] for row in rows if row[1:2] == ["now"]}
    assert present == {method.removesuffix("_projector").removesuffix("_decoder") for method in METHODS}
    assert not present & {row[0] for row in rows if row[1:2] == ["planned"]}


def test_a_family_takes_the_settings_of_the_one_that_it_follows(monkeypatch):
    """Where a file has no section for it; an empty section is one. A family built on it follows nothing by that."""

    class Tiled(FAMILIES["qwen2_vl"]):
        follows = "llava_next"

    class Alone(FAMILIES["qwen2_vl"]):
        pass

    monkeypatch.setitem(FAMILIES._items, "tiled", Tiled)
    monkeypatch.setitem(FAMILIES._items, "alone", Alone)

    def scope(strategy, family):
        return resolve(strategy, family).stages[0].scope

    assert (scope("hiprune", "tiled"), scope("hiprune", "alone")) == ("per_tile", "per_image")
    raw = {**INLINE, "families": {"llava_next": {"scope": "per_tile"}, "qwen2_5_vl": {"scope": "per_request"}}}
    assert [scope(raw, name) for name in ("llava", "llava_next", "qwen2_vl", "tiled", "alone")] == [
        "per_image", "per_tile", "per_request", "per_tile", "per_image",
    ]  # fmt: skip
    raw["families"]["qwen2_vl"] = None
    assert scope(raw, "qwen2_vl") == "per_image"


def test_a_family_is_asked_without_transformers():
    """What a family's class says of itself costs no model code, so that `vtc show --family` answers at once."""
    done = run_python(
        "-c", "import sys, vtc; vtc.load_strategy('pool', 'qwen2_vl'); print('transformers' in sys.modules)"
    )
    assert done.stdout.split() == ["False"], done.stderr


def test_overrides_win_over_sections_and_these_over_the_file():
    """Keyword arguments, then the family's section, then the top level."""
    raw = {**INLINE, "positions": "compact", "families": {"llava": {"alpha": 0.7, "positions": "keep", "keep": 9}}}
    assert (
        resolve(raw).stages[0].stage.alpha,
        resolve(raw).stages[0].positions,
        resolve(raw).keep,
    ) == (0.3, "compact", 0.5)
    section = resolve(raw, "llava")
    assert (section.stages[0].stage.alpha, section.stages[0].positions, section.keep) == (0.7, "keep", 9)
    assert resolve(raw, "qwen2_vl") == resolve(raw)
    override = resolve(raw, "llava", alpha=0.1, positions="compact", prune_ratio=0.25)
    assert (override.stages[0].stage.alpha, override.stages[0].positions, override.keep) == (0.1, "compact", 0.75)
    assert raw["stages"] == [{"method": "hiprune", "alpha": 0.3}]


def test_prune_ratio_and_keep_replace_each_other():
    """Whichever is given later counts, wherever the other one stands."""
    raw = {"prune_ratio": 0.9, "stages": [{"method": "uniform"}], "families": {"llava": {"keep": 7}}}
    assert resolve(raw).keep == 0.1
    assert resolve(raw, "llava").keep == 7
    assert resolve(raw, "llava", prune_ratio=0.5).keep == 0.5
    assert resolve(raw, keep="3").keep == 3


def test_defaults():
    """What a file leaves out."""
    (config,) = resolve({"keep": 0.5, "stages": [{"method": "uniform"}]}).stages
    assert (config.scope, config.rounding, config.positions) == ("per_image", "ceil", "compact")


def test_an_int_passes_for_a_float_knob():
    """alpha: 1 in YAML is 1.0."""
    alpha = resolve(INLINE, alpha=1).stages[0].stage.alpha
    assert (alpha, type(alpha)) == (1.0, float)


SETS = {
    "alpha=0.2": ("alpha", 0.2),
    "keep=192": ("keep", 192),
    "keep=1.0": ("keep", 1.0),
    "scope=per_tile": ("scope", "per_tile"),
    "seed=-4": ("seed", -4),
    " alpha =0.2": ("alpha", 0.2),
    "exclude=a=b": ("exclude", "a=b"),
    "keep=": ("keep", None),
}


@pytest.mark.parametrize("text, expected", SETS.items())
def test_set_of_the_command_line(text, expected):
    """KEY=VALUE with the value's YAML type."""
    assert parse_set(text) == expected
    assert type(parse_set(text)[1]) is type(expected[1])


@pytest.mark.parametrize("text", ["alpha", "=3", "", "alpha=[1", "alpha=!!python/name:os.system ''"])
def test_bad_set_is_refused(text):
    """No sign, no key, no YAML, unsafe YAML."""
    with pytest.raises(vtc.ConfigError) as caught:
        parse_set(text)
    assert "\n" not in str(caught.value)


KEEPS = [("1", 1), ("1.0", 1.0), ("0.25", 0.25), ("192", 192), (1, 1), (1.0, 1.0), ("1e-1", 0.1)]


@pytest.mark.parametrize("given_, expected", KEEPS)
def test_keep_tells_counts_from_fractions(given_, expected):
    """By type, and in text by how it is written."""
    assert parse_keep(given_) == expected
    assert type(parse_keep(given_)) is type(expected)


@settings(max_examples=300)
@given(tokens=st.integers(1, 3000), keep=fractions)
def test_fractions_are_exact(tokens, keep):
    """ceil and floor of the decimal fraction, never of its binary neighbour; at least 1."""
    exact = Fraction(str(keep)) * tokens
    assert Budget(keep).count(tokens) == max(1, math.ceil(exact))
    assert Budget(keep, rounding="floor").count(tokens) == max(1, math.floor(exact))
    assert Budget(keep, rounding="round").count(tokens) in (max(1, round(tokens * keep)), max(1, round(exact)))


WHOLE = [(0.1, 10, 1), (0.7, 10, 7), (0.29, 100, 29), (0.55, 100, 55), (0.07, 100, 7)]


@pytest.mark.parametrize("keep, tokens, expected", WHOLE)
def test_ceil_of_whole_products(keep, tokens, expected):
    """Products that binary floating point would push over the next whole number."""
    assert Budget(keep).count(tokens) == expected


@settings(max_examples=100)
@given(ratio=st.integers(0, 999).map(lambda n: n / 1000), tokens=st.integers(1, 2000))
def test_prune_ratio_is_one_minus_keep(ratio, tokens):
    """prune_ratio=0.9 is keep=0.1, not 0.09999999999999998."""
    keep = keep_from_prune_ratio(ratio)
    assert Fraction(str(keep)) == 1 - Fraction(str(ratio))
    assert Budget(keep).count(tokens) == max(1, math.ceil((1 - Fraction(str(ratio))) * tokens))


images = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), min_size=1, max_size=5)


@settings(max_examples=300)
@given(request=images, keep=st.integers(1, 200))
def test_quotas_of_counts(request, keep):
    """Counts by scope: per image, per tile, and shared in proportion among the images of a prompt."""
    totals = [sum(tiles) for tiles in request]
    assert Budget(keep).quotas(request) == [[min(keep, n)] for n in totals]
    for parts, image in zip(Budget(keep, "per_tile").quotas(request), request, strict=True):
        assert sum(parts) == min(keep, sum(image))
        cut = [part for part, n in zip(parts, image, strict=True) if part < n]
        assert cut == sorted(cut, reverse=True)
        assert not cut or max(parts) <= min(cut) + 1
    for parts, image in zip(Budget(keep, "per_tile", "floor").quotas(request), request, strict=True):
        cut = {part for part, n in zip(parts, image, strict=True) if part < n}
        assert len(cut) <= 1 or cut == {0, 1}
    shared = [n for (n,) in Budget(keep, "per_request").quotas(request)]
    assert all(1 <= n <= total for n, total in zip(shared, totals, strict=True))
    assert sum(shared) == max(len(totals), min(keep, sum(totals)))
    if keep >= sum(totals):
        assert shared == totals


def test_quotas_of_tiles():
    """A remainder goes to the first tiles, or is lost where the paper rounds down; what a tile cannot take, the others
    do; fewer tokens than tiles go to the first ones."""
    assert Budget(320, "per_tile").quotas([[576] * 3]) == [[107, 107, 106]]
    assert Budget(320, "per_tile", "floor").quotas([[576] * 3]) == [[106, 106, 106]]
    assert Budget(10, "per_tile").quotas([[36, 0, 2, 36, 36]]) == [[3, 0, 2, 3, 2]]
    for rounding in ("ceil", "floor"):
        assert Budget(3, "per_tile", rounding).quotas([[36] * 5]) == [[1, 1, 1, 0, 0]]


def test_shared_quota_is_proportional():
    """Largest remainders: 10 over images of 30, 20 and 10."""
    assert Budget(10, "per_request").quotas([[30], [20], [10]]) == [[5], [3], [2]]
    assert Budget(6, "per_request").quotas([[30], [20], [10]]) == [[3], [2], [1]]
    assert Budget(4, "per_request").quotas([[100], [1], [1], [1]]) == [[1], [1], [1], [1]]


def test_ties_of_a_shared_quota_go_to_the_lower_index():
    """A token too many among equal images is the first one's; a token that one of them must give is the last one's."""
    assert Budget(4, "per_request").quotas([[5], [5], [5]]) == [[2], [1], [1]]
    assert Budget(5, "per_request").quotas([[5], [5], [5]]) == [[2], [2], [1]]
    assert Budget(10, "per_request").quotas([[1], [1], [1], [30], [30]]) == [[1], [1], [1], [4], [3]]


@settings(max_examples=100)
@given(request=images, keep=fractions)
def test_quotas_of_fractions(request, keep):
    """A fraction is of each image, or of each tile."""
    budget = Budget(keep)
    assert budget.quotas(request) == [[budget.count(sum(tiles))] for tiles in request]
    assert Budget(keep, "per_request").quotas(request) == budget.quotas(request)
    assert Budget(keep, "per_tile").quotas(request) == [[budget.count(n) for n in tiles] for tiles in request]
