"""The YAML of a sweep: what it means, and one line for each mistake."""

import pytest
import yaml

from tests.helpers_sweep import GRID, SEARCH, spec_of
from vtc.core.errors import ConfigError
from vtc.eval.sweep.cells import cell_of, check, heldout_cells, planned
from vtc.eval.sweep.engine import _sampled
from vtc.eval.sweep.objectives import pareto
from vtc.eval.sweep.space import chosen, draw, grid
from vtc.eval.sweep.spec import load_spec, read_spec, shipped

WRONG = [
    ({"stratgy": 1}, "unknown key in the sweep 'stratgy'"),
    ({"taks": "demo"}, "did you mean 'tasks'"),
    ({"space": None}, "'space' is missing"),
    ({"space": {"alpha": 0.1}}, "space.alpha=0.1"),
    ({"space": {"alpha": []}}, "not empty"),
    ({"space": {"alpha": [0.1, 0.1]}}, "each value once"),
    ({"space": {"alpha": {"low": 0, "hihg": 1}}}, "did you mean 'high'"),
    ({"space": {"alpha": {"low": 1, "high": 0, "step": 1}}}, "low < high"),
    ({"space": {"alpha": {"low": 0.0, "high": 1.0}}}, "a range without a step in a grid"),
    ({"space": {"alpha": {"values": [1], "low": 0}}}, "values and a range"),
    ({"space": {"a": {"values": [1], "when": {"b": 2}}}}, "unknown parameter in space.a.when 'b'"),
    (
        {"space": {"a": {"values": [1], "when": {"b": 2}}, "b": {"values": [2], "when": {"a": 1}}}},
        "depend on each other",
    ),
    ({"space": {"limit": [1]}}, "space.limit is no parameter"),
    ({"exclude": [{"keeep": 0.5}]}, "did you mean 'keep'"),
    ({"exclude": {"keep": 0.5}}, "a list of mappings"),
    ({"mode": "serch"}, "did you mean 'search'"),
    ({"trials": 5}, "'trials' means nothing in mode grid"),
    ({"mode": "search", "sampler": "tpee"}, "did you mean 'tpe'"),
    ({"mode": "search", "seeds": [0, 1], "heldout": None}, "mode search with 2 seeds"),
    ({"limit": 0}, "limit=0"),
    ({"pad_square": "yes please"}, "true or false"),
    ({"seeds": [0, 0]}, "each entry once"),
    ({"objectives": ["acuracy"]}, "did you mean 'accuracy'"),
    ({"objectives": [{"figure": "accuracy", "budget": 2.0}]}, "budget=2.0"),
    ({"tasks": ["demo", "gqa"]}, "possible: relative"),
    ({"heldout": {"split": "test"}}, "heldout.reference"),
    ({"heldout": {"split": "test", "reference": {"strategy": "hiprune"}, "objective": "x"}}, "objective of heldout"),
    ({"models": ["demo"], "model": "demo"}, "one of them"),
    ({"model_args": {"token": "secret"}}, "written into files"),
]


@pytest.mark.parametrize("changed, message", WRONG)
def test_mistakes(changed, message):
    """Each is one line that names the place and what is possible."""
    with pytest.raises(ConfigError) as caught:
        spec_of(GRID, **changed)
    assert message in str(caught.value)
    assert str(caught.value).startswith("sweep 'toy': ")
    assert "\n" not in str(caught.value)


def test_no_yaml():
    """Unsafe or broken YAML and unknown names are one line."""
    for text in ("a: [", "!!python/object:os.system {}"):
        with pytest.raises(ConfigError, match="not valid"):
            read_spec(text, "toy")
    with pytest.raises(ConfigError, match="did you mean 'hiprune_search'"):
        load_spec("hiprune_serch")


@pytest.mark.parametrize(
    "space, message",
    [
        ({"strategy": ["hiprun"]}, "did you mean 'hiprune'"),
        ({"strategy": ["uniform"], "alpha": [0.1]}, "alpha"),
        ({"strategy": ["hiprune"], "keep": [1.5]}, "keep=1.5"),
        ({"strategy": ["hiprune"], "alpha": [7.0]}, "alpha=7.0"),
    ],
)
def test_wrong_cells(space, message):
    """A strategy, knob or budget that cannot be is found before anything runs, and the cell is named."""
    with pytest.raises(ConfigError, match="cell ") as caught:
        check(planned(spec_of(GRID, space=space, heldout={"split": "tune", "reference": {"strategy": "hiprune"}},
                              objectives=["accuracy"])))  # fmt: skip
    assert message in str(caught.value)


def test_conditional_parameters():
    """A parameter is only where its condition holds, in whatever order the YAML has them."""
    parameters = spec_of(GRID).space
    found = list(grid(parameters))
    assert len(found) == 2 + 2 * 2
    assert all(("alpha" in one) == (one["strategy"] == "hiprune") for one in found)
    turned = spec_of(GRID, space=dict(reversed(yaml.safe_load(GRID)["space"].items()))).space
    assert [p.name for p in turned].index("strategy") < [p.name for p in turned].index("alpha")
    key = sorted(str(sorted(one.items())) for one in found)
    assert sorted(str(sorted(one.items())) for one in grid(turned)) == key


def test_chain_of_conditions():
    """A parameter below one that is not there is not there either."""
    space = {
        "strategy": ["hiprune", "uniform"],
        "c": {"values": [1], "when": {"b": 2}},
        "b": {"values": [2, 3], "when": {"strategy": "hiprune"}},
    }
    found = list(grid(spec_of(GRID, space=space, objectives=["accuracy"]).space))
    assert found == [
        {"strategy": "hiprune", "b": 2, "c": 1}, {"strategy": "hiprune", "b": 3}, {"strategy": "uniform"},
    ]  # fmt: skip


def test_excluded():
    """Partial assignments take cells out; lists mean any of these; baselines stay."""
    spec = spec_of(GRID, exclude=[{"strategy": "hiprune", "keep": [0.5, 0.25], "alpha": 0.3}, {"strategy": "uniform"}])
    cells = planned(spec)
    assert sorted(cell.label for cell in cells if cell.excluded) == [
        "hiprune keep=0.25 alpha=0.3", "hiprune keep=0.5 alpha=0.3", "uniform keep=0.25", "uniform keep=0.5",
    ]  # fmt: skip
    assert [cell.role for cell in cells][:2] == ["baseline", "baseline"]
    assert cells[0].params["strategy"] == "none"


def test_hash():
    """The same cell has the same name whatever the order of the YAML; each difference gives another name."""
    spec = spec_of(GRID)
    one = cell_of(spec, {"strategy": "hiprune", "keep": 0.5, "alpha": 0.1, "object_layer": 2})
    two = cell_of(spec_of("\n".join(reversed(GRID.strip().splitlines()[:1])) + GRID[GRID.index("\nspace") :], name="z"),
                  {"object_layer": 2, "alpha": 0.1, "keep": 0.5, "strategy": "hiprune"})  # fmt: skip
    assert one.id == two.id == "".join(c for c in one.id if c in "0123456789abcdef")
    assert len(one.id) == 12
    others = [
        cell_of(spec, {"strategy": "hiprune", "keep": 0.5, "alpha": 0.1}),
        cell_of(spec, {"strategy": "hiprune", "keep": 0.25, "alpha": 0.1, "object_layer": 2}),
        cell_of(spec, {"strategy": "hiprune", "keep": 0.5, "alpha": 0.1, "object_layer": 2}, seed=1),
        cell_of(spec_of(GRID, limit=8), {"strategy": "hiprune", "keep": 0.5, "alpha": 0.1, "object_layer": 2}),
        *heldout_cells(spec, {"strategy": "hiprune", "keep": 0.5, "alpha": 0.1, "object_layer": 2}),
    ]
    assert len({cell.id for cell in (one, *others)}) == 1 + len(others)


def test_random():
    """A seed gives the same distinct assignments, another seed others; more of them begin with the same."""
    space = {
        "strategy": ["hiprune"],
        "alpha": {"low": 0.0, "high": 1.0},
        "object_layer": {"low": 0, "high": 6, "int": True},
    }
    drawn = {}
    for seed, n in ((0, 5), (0, 8), (1, 5)):
        spec = spec_of(GRID, space=space, mode="random", n=n, seed=seed, objectives=["accuracy"])
        drawn[seed, n] = [cell.id for cell in planned(spec) if cell.role == "cell"]
    assert drawn[0, 8][:5] == drawn[0, 5]
    assert len(set(drawn[0, 8])) == 8
    assert not set(drawn[0, 5]) & set(drawn[1, 5])
    few = spec_of(GRID, mode="random", n=50)
    assert sum(cell.role == "cell" for cell in planned(few)) == 6, "all that there are"


def test_draw_ranges():
    """Draws stay within their range and its steps."""
    spec = spec_of(SEARCH, space={"strategy": ["hiprune"], "a": {"low": 1e-3, "high": 1.0, "log": True},
                                  "b": {"low": 0.1, "high": 0.4, "step": 0.1}})  # fmt: skip
    drawn = [draw(spec.space, 3, i) for i in range(200)]
    assert all(1e-3 <= one["a"] <= 1 for one in drawn)
    assert 0.3 < sum(one["a"] < 0.0316 for one in drawn) / 200 < 0.7, "uniform in the logarithm"
    assert {one["b"] for one in drawn} == {0.1, 0.2, 0.3, 0.4}


def test_only():
    """--only: each key with one of its values; baselines always."""
    cells = planned(spec_of(GRID))
    found = chosen("strategy=hiprune,keep=0.5,alpha=0.1,alpha=0.3", cells)
    assert [cell.label for cell in found if cell.role == "cell"] == [
        "hiprune keep=0.5 alpha=0.1", "hiprune keep=0.5 alpha=0.3",
    ]  # fmt: skip
    assert found[0].params["strategy"] == "none"
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        chosen("hiprune", cells)
    assert chosen(None, cells) == cells
    for only, said in (
        ("strategi=hiprune", "unknown key in --only 'strategi': did you mean 'strategy'"),
        ("strategy=hiprune,strategy=hiprun", r"--only 'strategy=hiprun' matches no cell; possible: \['none'"),
        ("keep=0.77", "--only 'keep=0.77' matches no cell"),
        ("strategy=none,keep=0.5", "matches no cell; possible: values that stand together"),
    ):
        with pytest.raises(ConfigError, match=said):
            chosen(only, cells)


def test_pareto():
    """Nowhere worse and somewhere better takes a point out; equal points stay; unknown ones are in no set."""
    points = [(0.9, 10), (0.9, 5), (0.8, 5), (0.95, 20), (0.9, 5), (None, 1), (0.1, 1)]
    assert pareto(points, (1, -1)) == [1, 3, 4, 6]
    assert pareto(points[:5], (1, 1)) == [3]


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped(name):
    """Each shipped sweep is read, and all its cells (of a search: many of them) are possible."""
    spec = load_spec(name)
    assert spec.name == name
    check([cell for cell in planned(spec) if not cell.excluded] + _sampled(spec))
