"""Bad input for stages inside the language model and for compositions: one line, the value, what is possible."""

import pytest
import torch

import vtc
from tests.helpers import forward, inputs_of, model_of, refused, state, unharmed

pytestmark = pytest.mark.usefixtures("untouched")
NAN, INF = float("nan"), float("inf")
NAMES = "fastv, flowcut, hiprune, "
FIRST = "possible: at most one at the projector, first"
DEPTH = "beyond the 6 layers", "possible: 1 to 5"
SHARES = "must not rise", "possible: shares in (0, 1]"
WHOLE = "ranks whole images", "possible: "
UNIFORM = {"keep": 0.5, "stages": [{"method": "uniform"}]}


def stages(*rows: dict, **top) -> dict:
    return {**top, "stages": list(rows)}


STRATEGIES = {
    "unknown-part": ("hiprune+transprun", {}, ("'transprun'", "did you mean 'transprune'", NAMES)),
    "first-part-unknown": ("hiprun+transprune", {}, ("'hiprun'", "did you mean 'hiprune'", NAMES)),
    "plus-alone": ("+", {}, ("strategy ''", NAMES)),
    "plus-at-the-end": ("hiprune+", {}, ("strategy ''", NAMES)),
    "plus-at-the-start": ("+fastv", {}, ("strategy ''", NAMES)),
    "two-pluses": ("hiprune++fastv", {}, ("strategy ''", NAMES)),
    "many-pluses": ("a+" * 3000, {}, ("'a'", NAMES)),
    "nul-byte-part": ("hiprune+\0", {}, ("strategy", NAMES)),
    "comma": ("hiprune,fastv", {}, ("'hiprune,fastv'", "did you mean", NAMES)),
    "missing-file-part": ("hiprune+none.yaml", {}, ("none.yaml", "does not exist")),
    "empty-list": ([], {}, ("strategy []", "possible: a name")),
    "empty-tuple": ((), {}, ("empty", "possible: a name")),
    "nested-list": (["hiprune", ["fastv"]], {}, ("list", "possible: a name")),
    "list-in-list": ([["hiprune"]], {}, ("list", "possible: a name")),
    "list-of-none": (["hiprune", None], {}, ("NoneType", "possible: a name")),
    "list-of-numbers": ([1, 2], {}, ("int", "possible: a name")),
    "set": ({"hiprune", "fastv"}, {}, ("set", "possible: a name")),
    "bytes": (b"hiprune", {}, ("bytes", "possible: a name")),
    "decoder-first": ("fastv+hiprune", {}, ("'fastv+hiprune'", "decoder, projector", FIRST)),
    "two-at-the-projector": ("hiprune+uniform", {}, ("projector, projector", FIRST)),
    "visiondrop-has-a-projector": ("hiprune+visiondrop", {}, ("projector, projector, decoder", FIRST)),
    "between": ("fastv+uniform+fastv", {}, ("decoder, projector, decoder", FIRST)),
    "mapping-in-wrong-order": (stages({"method": "fastv"}, {"method": "uniform"}, keep=0.5), {}, (FIRST,)),
    "no-budget-at-the-projector": (stages({"method": "uniform"}, {"method": "fastv"}), {}, ("no budget", "keep or")),
    "two-budgets": (stages({"method": "uniform", "keep": 0.2}, keep=0.5), {}, ("keep", "possible: one of them")),
    "one-keep-for-a-part": ([stages({"method": "uniform"}, {"method": "fastv"}, keep=0.5), "fastv"], {}, ("one keep",)),
    "scope-in-a-stage": (stages({"method": "fastv", "scope": "per_tile"}), {}, ("scope='per_tile'", *WHOLE)),
    "rounding-in-a-stage": (stages({"method": "fastv", "rounding": "round"}), {}, ("rounding='round'", *WHOLE)),
    "positions-in-a-stage": (stages({"method": "fastv", "positions": "kept"}), {}, ("positions='kept'", "compact")),
    "positions-are-no": (stages({"method": "fastv", "positions": False}), {}, ("positions=False", "keep, compact")),
    "keep-in-a-stage": (stages({"method": "fastv", "keep": 0}), {}, ("keep=0", "(0, 1]")),
    "floor-of-a-stage": (stages({"method": "fastv", "keep": 0.1}), {}, ("keep=0.1", "possible: more than 0.1667")),
    "method-of-a-list": (stages({"method": ["fastv"]}), {}, ("['fastv']", "possible: ")),
    "part-of-a-family": ([UNIFORM, {**UNIFORM, "families": {"lava": {}}}], {}, ("'lava'", "did you mean 'llava'")),
    "knob-of-the-other": (stages({"method": "fastv", "alpha": 0.5}), {}, ("'alpha'", "possible: K, R")),
}
KNOBS = {
    "K-0": ("fastv", {"K": 0}, ("K=0", *DEPTH)),
    "K-6": ("fastv", {"K": 6}, ("K=6", *DEPTH)),
    "K-minus-1": ("fastv", {"K": -1}, ("K=-1", *DEPTH)),
    "K-huge": ("fastv", {"K": 10**30}, ("K=1000", *DEPTH)),
    "K-1.0": ("fastv", {"K": 1.0}, ("K=1.0", "possible: a float in (0, 1)")),
    "K-nan": ("fastv", {"K": NAN}, ("K=nan", "possible: finite numbers")),
    "K-true": ("fastv", {"K": True}, ("K=True", "bool", "possible: int or float")),
    "K-text": ("fastv", {"K": "2"}, ("K='2'", "str", "possible: int or float")),
    "K-none": ("fastv", {"K": None}, ("K=None", "possible: int or float")),
    "R-1": ("fastv", {"R": 1}, ("R=1.0", "possible: a share removed in [0, 1)")),
    "R-negative": ("fastv", {"R": -0.1}, ("R=-0.1", "[0, 1)")),
    "R-nan": ("fastv", {"R": NAN}, ("R=nan", "[0, 1)")),
    "R-huge": ("fastv", {"R": 10**400}, ("R=<an integer of 1329 bits>", "possible: float")),
    "R-0-with-keep": ("fastv", {"R": 0.0, "keep": 0.5}, ("keep=0.5", "no step", "possible: a schedule that does")),
    "alpha-1.5": ("transprune", {"alpha": 1.5}, ("alpha=1.5", "possible: 0 to 1")),
    "alpha-nan": ("transprune", {"alpha": NAN}, ("alpha=nan", "possible: 0 to 1")),
    "schedule-unknown": ("transprune", {"schedule": "hihg"}, ("schedule='hihg'", "possible: high, low, combined")),
    "schedule-list": ("transprune", {"schedule": ["high"]}, ("schedule=['high']", "possible: high, low, combined")),
    "layers-none": ("transprune", {"layers": None}, ("layers=None", "possible: a list of int or float")),
    "layers-number": ("transprune", {"layers": 3}, ("layers=3", "possible: a list of int or float")),
    "layers-text": ("transprune", {"layers": "123"}, ("layers='123'", "possible: a list of int or float")),
    "layers-empty": ("transprune", {"layers": []}, ("0 layers and 3 ratios", "possible: as many")),
    "layers-two": ("transprune", {"layers": [1, 2]}, ("2 layers and 3 ratios", "possible: as many")),
    "layers-fall": ("transprune", {"layers": [3, 2, 4]}, ("layers=[3, 2, 4]", "do not rise", "possible: ")),
    "layers-too-deep": ("transprune", {"layers": [1, 2, 6]}, ("layers=6", *DEPTH)),
    "layers-with-bool": ("transprune", {"layers": [True, 2, 3]}, ("layers=[True, 2, 3]", "a list of int or float")),
    "layers-with-nan": ("transprune", {"layers": [1, 2, NAN]}, ("layers=[1, 2, nan]", "possible: finite numbers")),
    "layers-nested": ("transprune", {"layers": [[1, 2, 3]]}, ("layers=[[1, 2, 3]]", "a list of int or float")),
    "ratios-rise": ("transprune", {"ratios": [0.5, 0.6, 0.1]}, ("ratios=[0.5, 0.6, 0.1]", *SHARES)),
    "ratios-two": ("transprune", {"ratios": [0.5, 0.3]}, ("3 layers and 2 ratios", "possible: as many")),
    "ratios-with-0": ("transprune", {"ratios": [0.5, 0.3, 0]}, ("ratios=[0.5, 0.3, 0.0]", *SHARES)),
    "ratios-above-1": ("transprune", {"ratios": [1.5, 0.5, 0.1]}, ("ratios=[1.5, 0.5, 0.1]", *SHARES)),
    "ratios-nan": ("transprune", {"ratios": [NAN, NAN, NAN]}, ("ratios=[nan, nan, nan]", "possible: finite numbers")),
    "ratios-inf": ("transprune", {"ratios": [INF, 0.5, 0.1]}, ("ratios=[inf, 0.5, 0.1]", "possible: finite numbers")),
    "ratios-with-text": ("transprune", {"ratios": [0.5, "a", 0.1]}, ("'a'", "possible: a list of float or null")),
    "accumulate-empty": ("transprune", {"accumulate": []}, ("accumulate=[]", "possible: [int or float, int or float]")),
    "accumulate-three": ("transprune", {"accumulate": [1, 2, 3]}, ("accumulate=[1, 2, 3]", "possible: [int or")),
    "accumulate-number": ("transprune", {"accumulate": 2}, ("accumulate=2", "possible: [int or")),
    "accumulate-falls": ("transprune", {"accumulate": [5, 2]}, ("accumulate=[5, 2]", "possible: [first, last]")),
    "accumulate-from-0": ("transprune", {"accumulate": [0, 2]}, ("accumulate=0", *DEPTH)),
    "layer_list-too-deep": ("pyramiddrop", {"layer_list": [1, 2, 9]}, ("=9", *DEPTH)),
    "layer_list-mapping": ("pyramiddrop", {"layer_list": {}}, ("layer_list={}", "possible: a list of int or float")),
    "image-ratios-rise": ("pyramiddrop", {"image_token_ratio_list": [0.1, 0.2, 0.3]}, ("[0.1, 0.2, 0.3]", *SHARES)),
    "contextual-1": ("visiondrop", {"visiondrop_projector.contextual": 1}, ("contextual=1.0", "a share in [0, 1)")),
    "contextual-one": ("visiondrop", {"visiondrop.contextual": [0.1]}, ("1 contextual shares", "as many of one")),
    "contextual-nan": ("visiondrop", {"visiondrop.contextual": [0.1, NAN, 0]}, ("nan", "possible: shares in [0, 1)")),
    "contextual-whose": ("visiondrop", {"contextual": 0.1}, ("contextual=0.1", "possible: visiondrop_projector.cont")),
    "layer-too-deep": ("visiondrop", {"layer": 4}, ("layer=4", "4 layers", "possible: -4 to 3")),
    "layer-true": ("visiondrop", {"layer": True}, ("layer=True", "bool", "possible: int or float")),
    "scope-on-fastv": ("fastv", {"scope": "per_tile"}, ("scope='per_tile'", "fastv", *WHOLE)),
    "rounding-on-fastv": ("fastv", {"rounding": "floor"}, ("rounding='floor'", "fastv", *WHOLE)),
    "scope-of-a-stage": ("hiprune+fastv", {"fastv.scope": "per_tile"}, ("scope='per_tile'", "fastv", *WHOLE)),
    "positions-of-a-stage": ("hiprune+fastv", {"fastv.positions": "x"}, ("positions='x'", "possible: keep, compact")),
    "unknown-method": ("hiprune+fastv", {"transprune.alpha": 1}, ("'transprune.alpha'", "hiprune.KEY", "fastv.KEY")),
    "unknown-knob": ("hiprune+fastv", {"hiprune.alhpa": 1}, ("'hiprune.alhpa'", "did you mean 'hiprune.alpha'")),
    "knob-itself": ("hiprune+fastv", {"hiprune.KEY": 1}, ("'hiprune.KEY'", "possible: hiprune.alpha")),
    "knob-empty": ("hiprune+fastv", {"hiprune.": 1}, ("'hiprune.'", "possible: hiprune.alpha")),
    "method-empty": ("hiprune+fastv", {".alpha": 1}, ("'.alpha'", "did you mean 'alpha'")),
    "method-as-knob": ("hiprune+fastv", {"hiprune.method": "pool"}, ("'hiprune.method'", "possible: hiprune.alpha")),
    "ambiguous": ("hiprune+transprune", {"alpha": 0.2}, ("alpha=0.2", "possible: hiprune.alpha, transprune.alpha")),
    "two-keeps": ("hiprune+fastv", {"keep": 0.3, "hiprune.keep": 0.5}, ("keep and hiprune.keep", "one of them")),
    "two-keeps-of-one": ("hiprune+fastv", {"fastv.keep": 0.5, "fastv.prune_ratio": 0.5}, ("fastv", "one of them")),
    "keep-of-a-stage": ("hiprune+fastv", {"fastv.keep": "much"}, ("keep='much'", "possible: a fraction")),
    "keep-of-the-projector": ("hiprune+fastv", {"hiprune.keep": 65}, ("keep=65", "possible: 1 to 64")),
    "keep-below-the-floor": ("fastv", {"keep": 0.05}, ("keep=0.05", "possible: more than 0.1667", "hiprune+fastv")),
    "prune-below-the-floor": ("fastv", {"prune_ratio": 0.9}, ("keep=0.1", "possible: more than 0.1667")),
    "keep-tiny": ("pyramiddrop", {"keep": 1e-300}, ("keep=1e-300", "possible: more than 0.3333")),
    "number-below-the-floor": (
        "fastv",
        {"keep": 10},
        ("keep=10 of the 64", "possible: more than 10.67", "hiprune+fastv"),
    ),
    "number-of-a-stage-below": ("hiprune+fastv", {"fastv.keep": 1}, ("keep=1 of the 16", "possible: more than 2.667")),
    "number-of-a-stage": ("hiprune+fastv", {"fastv.keep": 0}, ("keep=0", "possible: a fraction")),
    "keep-above-the-tokens": ("hiprune+fastv", {"keep": 65}, ("keep=65", "possible: 1 to 64")),
    "keep-above-the-tokens-inside": ("fastv", {"keep": 65}, ("keep=65", "possible: 1 to 64")),
    "keep-nan": ("hiprune+fastv", {"keep": NAN}, ("keep=nan", "possible: a fraction")),
    "keep-true": ("hiprune+fastv", {"keep": True}, ("keep=True", "possible: a fraction")),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies(model, name):
    """Compositions that are none, stages in a wrong order, options that a stage does not have."""
    strategy, options, words = STRATEGIES[name]
    message = refused(lambda: vtc.patch(model, strategy, **options), *words, kind=vtc.ConfigError)
    assert "possible" in message


@pytest.mark.parametrize("name", KNOBS)
def test_knobs(model, name):
    """Knobs, budgets and overrides by method."""
    strategy, options, words = KNOBS[name]
    message = refused(lambda: vtc.patch(model, strategy, **options), *words, kind=vtc.ConfigError)
    assert "possible" in message


def test_refused_composition_leaves_the_former_patch(model):
    """A bad second patch does not take the first one off, inside the language model too."""
    inputs = inputs_of("llava", images=(1,))
    with vtc.patched(model, "hiprune+fastv"):
        expected, before = forward(model, inputs).logits, state(model)
        refused(lambda: vtc.patch(model, "hiprune+fastv", K=9), "K=9")
        refused(lambda: vtc.patch(model, "fastv+hiprune"), "projector")
        refused(lambda: vtc.patch(model, "fastv", keep=0.01), "keep=0.01")
        assert state(model) == before
        assert torch.equal(forward(model, inputs).logits, expected)


@pytest.mark.parametrize("case", ["llava_next", "qwen2_vl"])
def test_numbers_of_families_with_images_of_any_size(case):
    """What an image is too large for is known with the image: the call is refused in one line and leaves no trace."""
    tiled, inputs = model_of(case), inputs_of(case, images=(1,))
    with unharmed(tiled, inputs), vtc.patched(tiled, "fastv", keep=1):
        patched = state(tiled)
        refused(lambda: forward(tiled, inputs), "keep=1 of the", "possible: more than", kind=vtc.ConfigError)
        assert state(tiled) == patched
        assert torch.isfinite(forward(tiled, inputs_of(case, images=(0,))).logits).all()
