"""Budgets over layers: what `keep` means for stages inside the language model, alone and composed. (Not for adaptive
methods, which drop by what they see.)"""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import vtc
from vtc.config.allocation import Allocation
from vtc.config.resolve import resolve
from vtc.core.signals import Decoder
from vtc.strategies import METHODS

# VFlowOpt's own schedule takes so little that many budgets are out of its reach.
INSIDE = [n for n in METHODS if METHODS[n].site == "decoder" and not METHODS[n].adaptive and n != "vflowopt"]
L32 = Decoder("test", 32)
depths, sizes, keeps = st.integers(4, 80), st.integers(1, 3000), st.floats(0.01, 1.0)
examples = settings(max_examples=100)
inside = pytest.mark.parametrize("method", INSIDE)


def plan(strategy, keep=None, depth=32, **knobs) -> Allocation:
    """The schedule of a strategy on a language model of some depth."""
    overrides = knobs if keep is None else {"keep": keep, **knobs}
    return Allocation(resolve(strategy, **overrides), Decoder("test", depth))


def alone(method: str, **options) -> dict:
    """A method with its default knobs as a strategy of one stage."""
    return {"stages": [{"method": method, **options}]}


def mean(allocation: Allocation, before: int, entered: int | None = None) -> float:
    """Tokens that a layer sees on average."""
    return sum(allocation.tokens_per_layer(before, before if entered is None else entered)) / allocation.depth


def floor(method: str, depth: int) -> float:
    """The share that the layers before the first drop see, which no power can lower."""
    return METHODS[method]().steps(Decoder("test", depth))[0].layer / depth


@inside
@examples
@given(depth=depths, tokens=sizes, keep=keeps, number=st.booleans())
def test_keep_is_the_mean_over_layers(method, depth, tokens, keep, number):
    """Within one token of what was asked, as a fraction or as a number; never fewer than one token in a layer."""
    asked = max(1, round(keep * tokens)) if number else keep
    fraction = min(1.0, asked / tokens) if number else keep
    if fraction <= floor(method, depth) + 1e-6:
        return
    allocation = plan(alone(method), asked, depth)
    layers = allocation.tokens_per_layer(tokens, tokens)
    assert len(layers) == depth
    assert layers == sorted(layers, reverse=True)
    assert 1 <= layers[-1] <= layers[0] == tokens
    # Each count is rounded by less than one token; a layer that would have none keeps one.
    assert abs(sum(layers) / depth - fraction * tokens) < 1


@inside
@examples
@given(depth=depths, tokens=sizes, pair=st.lists(keeps, min_size=2, max_size=2))
def test_more_keep_never_means_fewer_tokens(method, depth, tokens, pair):
    """In no layer, for no two budgets within reach."""
    low, high = sorted(pair)
    if low <= floor(method, depth) + 1e-6:
        return
    fewer, more = (plan(alone(method), keep, depth).tokens_per_layer(tokens, tokens) for keep in (low, high))
    assert all(a <= b for a, b in zip(fewer, more, strict=True))


PUBLISHED = [
    ("fastv", {"R": 0.25}, 576, [432]),
    ("fastv", {}, 576, [288]),
    ("fastv", {"R": 0.75}, 576, [144]),
    ("fastv", {"R": 0.875}, 576, [72]),
    ("fastv", {"K": 3, "R": 0.75}, 576, [144]),
    ("pyramiddrop", {}, 576, [288, 144, 72]),
    ("transprune", {}, 576, [504, 360, 72]),
    ("transprune", {"schedule": "low"}, 576, [288, 144, 38]),
    ("transprune", {"schedule": "combined"}, 576, [288, 144, 72]),
    ("transprune", {}, 2880, [2520, 1800, 360]),
    ("visiondrop", {}, 48, [35, 26, 19]),
]


@pytest.mark.parametrize("method, knobs, tokens, counts", PUBLISHED)
def test_published_counts(method, knobs, tokens, counts):
    """Without a keep the schedule is the published one; its mean as keep gives the same counts."""
    allocation = plan(alone(method), **knobs)
    assert allocation.powers(tokens, tokens) == (1.0,)
    assert allocation.counts(tokens, tokens) == counts
    again = plan(alone(method), allocation.mean(), **knobs)
    assert again.counts(tokens, tokens) == counts
    stage = plan(alone(method, keep=allocation.mean(), **knobs))
    assert stage.counts(9999, tokens) == counts


@inside
@examples
@given(depth=depths, tokens=sizes)
@example(depth=32, tokens=577)
def test_the_mean_of_the_schedule_is_the_schedule(method, depth, tokens):
    """For odd numbers of tokens too, where a share falls on a half."""
    allocation = plan(alone(method), depth=depth)
    again = plan(alone(method), allocation.mean(), depth)
    assert again.powers(tokens, tokens) == (1.0,)
    assert again.counts(tokens, tokens) == allocation.counts(tokens, tokens)


@pytest.mark.parametrize("method", ["pyramiddrop", "transprune"])
def test_whole_counts_are_not_truncated(method):
    """Powers are found up to rounding errors; 57 of 100, say, must not become 56.99999 and then 56."""
    published = plan(alone(method), depth=12)
    for count in range(1, 100):
        keep = published.mean((math.log(count / 100) / math.log(published.steps[0].share),))
        assert plan(alone(method), keep, 12).counts(100, 100)[0] == count


@inside
def test_keep_all(method):
    """1.0 as a fraction or all tokens as a number; more tokens than an image has is all of them."""
    assert plan(alone(method), 1.0).tokens_per_layer(100, 100) == [100] * 32
    assert plan(alone(method), 100).tokens_per_layer(100, 100) == [100] * 32
    assert plan(alone(method), 500).tokens_per_layer(100, 100) == [100] * 32
    assert plan(alone(method, keep=1.0)).tokens_per_layer(100, 100) == [100] * 32
    assert plan(["uniform", alone(method, keep=1.0)]).tokens_per_layer(100, 25) == [25] * 32


@inside
def test_a_number_is_of_each_image(method):
    """Images of different sizes get different powers from one keep."""
    allocation = plan(alone(method), 500)
    powers = [allocation.powers(n, n)[0] for n in (510, 576, 900)]
    assert powers == sorted(powers)
    assert all(abs(mean(allocation, n) - 500) < 1 for n in (510, 576, 900))


@pytest.mark.product
@examples
@given(depth=depths, tokens=st.integers(30, 3000), keep=keeps)
@pytest.mark.parametrize("method", INSIDE)
@pytest.mark.parametrize("first", ["hiprune", "uniform"])
def test_a_projector_and_the_published_schedule_inside(first, method, depth, tokens, keep):
    """What enters is keep / (mean share of the schedules), rounded up, and the powers are 1; beyond, everything enters
    and the schedules are relaxed. Either way the mean is met, but for one rounding at the projector and one inside."""
    most = plan(alone(method), depth=depth).mean()
    allocation = plan([first, alone(method)], keep, depth)
    assert allocation.mean() == pytest.approx(most)
    entered = allocation.projector.count(tokens)
    assert entered == pytest.approx(min(1, keep / most) * tokens, abs=1 + 1e-6)
    powers, found = allocation.powers(tokens, entered), allocation.counts(tokens, entered)
    if keep < most - 1e-6:
        assert powers == (1.0,)
        assert found == plan(alone(method), depth=depth).counts(entered, entered)
    elif keep > most + 1e-6:
        assert entered == tokens
        assert found == plan(alone(method), keep, depth).counts(tokens, tokens)
        assert 0 <= powers[0] < 1
    assert abs(mean(allocation, tokens, entered) - keep * tokens) < (6 if method == "dart" else 2)


@pytest.mark.parametrize("target, entered", [(32, 48), (64, 96), (128, 192), (192, 288)])
@pytest.mark.parametrize("as_share", [False, True])
def test_visiondrop_enters_with_one_and_a_half_times_the_target(target, entered, as_share):
    """The paper's rule on 576 tokens; for 32 the published 48, 35, 26, 19."""
    allocation = plan("visiondrop", target / 576 if as_share else target)
    assert allocation.projector.count(576) == entered
    assert abs(mean(allocation, 576, entered) - target) < 1
    if target == 32:
        assert [entered, *allocation.counts(576, entered)] == [48, 35, 26, 19]
        assert plan("visiondrop").projector.count(576) == 48


def test_a_composition_divides_exactly():
    """A quotient that floating point puts above a whole number costs no token: 0.07 / 0.7 of 100 is 10."""
    fastv = alone("fastv", K=8, R=0.4)
    assert plan(fastv).mean() == pytest.approx(0.7)
    assert plan(["uniform", fastv], 0.07).projector.count(100) == 10
    assert plan(["uniform", fastv], plan(fastv).mean()).projector.count(100) == 100
    assert plan(["uniform", fastv], 7).projector.count(100) == 10


@examples
@given(methods=st.lists(st.sampled_from(INSIDE), min_size=2, max_size=3), depth=depths, tokens=sizes, keep=keeps)
def test_several_methods_share_one_power(methods, depth, tokens, keep):
    """All shares of all methods are raised to one power, so that the mean over layers meets the budget."""
    if keep <= min(floor(method, depth) for method in methods) + 1e-6:
        return
    allocation = plan([alone(method) for method in methods], keep, depth)
    powers = allocation.powers(tokens, tokens)
    assert len(powers) == len(methods)
    assert len(set(powers)) == 1
    layers = allocation.tokens_per_layer(tokens, tokens)
    assert layers == sorted(layers, reverse=True)
    assert layers[-1] >= 1
    # A count may be rounded once per method.
    assert abs(sum(layers) / depth - keep * tokens) < len(methods)


def test_a_later_method_counts_from_what_is_left():
    """FastV halves 576 before layer 2; TransPrune's shares are of the 288 that it finds, before 7, 9 and 12."""
    allocation = plan("fastv+transprune")
    steps = [(step.layer, step.index, step.number) for step in allocation.steps]
    assert steps == [(2, 0, 0), (7, 1, 0), (9, 1, 1), (12, 1, 2)]
    assert allocation.counts(576, 576) == [288, 252, 180, 36]
    layers = allocation.tokens_per_layer(576, 576)
    assert layers == [576] * 2 + [288] * 5 + [252] * 2 + [180] * 3 + [36] * 20
    assert allocation.mean() * 576 == pytest.approx(sum(layers) / 32)


def test_steps_before_the_same_layer():
    """Both happen, in the order of the stages, and each is a step of its own."""
    parts = [alone("fastv", K=8), alone("pyramiddrop")]
    allocation, turned = plan(parts), plan(parts[::-1])
    assert [(step.layer, step.index) for step in allocation.steps] == [(8, 0), (8, 1), (16, 1), (24, 1)]
    assert [(step.layer, step.index) for step in turned.steps] == [(8, 0), (8, 1), (16, 0), (24, 0)]
    assert allocation.counts(576, 576) == [288, 144, 72, 36]
    assert turned.counts(576, 576) == [288, 144, 144, 72]
    assert allocation.tokens_per_layer(576, 576)[7:9] == [576, 144]
    assert plan("fastv+fastv").counts(576, 576) == [288, 144]


def test_a_later_method_never_brings_tokens_back():
    """Where an earlier method is further down than a later one's share, nothing happens."""
    parts = [alone("pyramiddrop"), alone("fastv", K=20, R=0.1)]
    allocation = plan(parts)
    assert allocation.counts(576, 576) == [288, 144, 130, 72]
    assert all(a >= b for a, b in zip(allocation.counts(7, 7), allocation.counts(7, 7)[1:], strict=False))


@examples
@given(depth=depths, entered=sizes, keep=st.floats(0.3, 1.0))
def test_a_stage_has_a_keep_of_its_own(depth, entered, keep):
    """Relative to what enters the language model; the stage at the projector has its own."""
    allocation = plan([{"keep": 0.25, **alone("uniform")}, alone("fastv", keep=keep)], depth=depth)
    assert allocation.projector.keep == 0.25
    assert abs(mean(allocation, 4 * entered, entered) - keep * entered) < 1
    number = max(1, round(keep * entered))
    allocation = plan("uniform+fastv", depth=depth, **{"fastv.keep": number})
    assert abs(mean(allocation, 4 * entered, entered) - number) < 1


def test_keeps_of_two_stages_inside():
    """Each as if it were alone: half on average by the first, three quarters of what is left by the second."""
    allocation = plan([alone("fastv", keep=0.6), alone("pyramiddrop", keep=0.75)])
    first, second = allocation.powers(1000, 1000)
    assert plan(alone("fastv"), 0.6).powers(1000, 1000) == (first,)
    assert plan(alone("pyramiddrop"), 0.75).powers(1000, 1000) == (second,)
    assert allocation.counts(1000, 1000)[0] == plan(alone("fastv"), 0.6).counts(1000, 1000)[0]


OUT_OF_REACH = [
    (lambda: plan("fastv", 0.05), ["keep=0.05", "fastv", "layer 2 of 32", "more than 0.0625", "hiprune+fastv"]),
    (lambda: plan("pyramiddrop", 0.2), ["keep=0.2", "layer 8 of 32", "more than 0.25", "hiprune+pyramiddrop"]),
    (lambda: plan("transprune", 0.2), ["keep=0.2", "layer 7 of 32", "hiprune+transprune"]),
    (lambda: plan("fastv+transprune", 0.03), ["keep=0.03", "fastv+transprune", "layer 2 of 32"]),
    (lambda: plan("fastv", 0.5, R=0.0), ["keep=0.5", "no step of its schedule removes any", "a schedule that does"]),
    (lambda: plan("fastv", 20).counts(576, 576), ["keep=20 of the 576", "more than 36,"]),
    (lambda: plan(alone("fastv", keep=0.01)), ["keep=0.01", "more than 0.0625"]),
    (lambda: plan("hiprune+fastv", **{"fastv.keep": 0.01}), ["keep=0.01", "fastv", "more than 0.0625"]),
]


@pytest.mark.parametrize("case", range(len(OUT_OF_REACH)))
def test_what_is_out_of_reach_is_refused(case):
    """One line with the value, the reason and what is possible."""
    call, words = OUT_OF_REACH[case]
    with pytest.raises(vtc.ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in [*words, "possible"] if word not in message]


@pytest.mark.parametrize("strategy", ["hiprune+transprune", "hiprune+fastv+transprune", "visiondrop"])
@pytest.mark.parametrize("keep", [0.7, 0.9, 1000, 1290])
def test_more_than_the_schedule_lets_through_relaxes_it(strategy, keep):
    """The projector then keeps all 1440 tokens, and the mean is met by a gentler schedule; below, nothing changes."""
    allocation, asked = plan(strategy, keep), keep if isinstance(keep, int) else 1440 * keep
    assert asked > 1440 * allocation.mean()
    assert allocation.projector.count(1440) == 1440
    assert sum(allocation.tokens_per_layer(1440, 1440)) / 32 == pytest.approx(asked, abs=1)
    assert all(0 < power < 1 for power in allocation.powers(1440, 1440))
    assert set(plan(strategy, 0.2).powers(1440, plan(strategy, 0.2).projector.count(1440))) == {1.0}


def test_numbers_are_checked_where_the_model_fixes_the_tokens():
    """Before any prompt, if the tokens of an image are known."""

    def known(strategy, keep, tokens=576):
        return Allocation(resolve(strategy, keep=keep), L32, tokens)

    with pytest.raises(vtc.ConfigError, match=r"keep=20 of the 576 .* more than 36,"):
        known("fastv", 20)
    assert known("hiprune+transprune", 300).projector.count(576) == 576
    assert known("hiprune+transprune", 236).projector.count(576) == 575
    assert known("fastv", 100).depth == known("fastv", 20, tokens=None).depth == 32
