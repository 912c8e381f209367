"""Settings for all tests: one thread each (tiny tensors, several workers), no network, the same examples every time.

Also the fixtures that several files share. Without a GPU Triton kernels run in Triton's interpreter.
"""

import functools
import gc
import os
import zlib
from collections import defaultdict

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)
settings.register_profile("vtc", deadline=None, derandomize=True)
settings.load_profile("vtc")
pytest.register_assert_rewrite("tests.helpers", "tests.helpers_decoder", "tests.helpers_oracle")
gc.disable()  # until all tests are collected: some 30,000 items live to the end, and the collector looks at each again


EVERY = 4  # of the methods that a test goes through, `make test` takes one in so many
FEW, MANY = 1, 9  # families that a test goes through in `make test` and in `make test-full`, other ones in each test
SHARE = 12  # of the pairs of method and family, one in so many in a test of `make test-full`


def pytest_collection_finish():
    """What was made so far stays to the end: the collector need not look at it in every round."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config, items):
    """Marks as `full` what `make test` leaves out, and leaves out what would show nothing new.

    Of a test marked `product`, `make test` runs a cover of its parameters' values (of methods one in EVERY, other ones
    in each test); `make test-full` adds pairs of method and family, so that each pair meets about one test in SHARE.
    Of other tests that go through the families, `make test` takes FEW of them and `make test-full` MANY, other ones in
    each test.
    """
    products, through = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for item in (item for item in items if hasattr(item, "callspec")):
        test, reason = item.nodeid.partition("[")[0], no_site(item)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
            item.add_marker(pytest.mark.full)
            continue
        if item.get_closest_marker("product"):
            products[test].append(item)
            continue
        for name, value in item.callspec.params.items():
            if isinstance(value, str) and value in _cases():
                through[test, name][value].append(item)
    left_out = set()
    for (test, _), families in through.items():
        for place, value in enumerate(sorted(families, key=lambda value: _number(test, value))):
            left_out |= {*families[value]} if place >= MANY else set()
            for item in families[value] if place >= FEW else ():
                item.add_marker(pytest.mark.full)
    for test, cases in products.items():
        few, more = cover(of_few_values(test, cases)), pairs(test, cases)
        few, more = first_of(few, cases), more | few
        for item in more - few:
            item.add_marker(pytest.mark.full)
        left_out |= {*cases} - few - more
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_setup(item):
    """Skips, with the reason, what a family cannot have: its class is not in the installed transformers, or it refuses
    the strategy by name (test_hybrid.py shows that it does)."""
    if not hasattr(item, "callspec"):
        return
    from vtc.patches import FAMILIES, available

    values = [value for value in item.callspec.params.values() if isinstance(value, str)]
    words = [word for value in values for word in value.split("+")]
    for family in (word for word in words if word in FAMILIES):
        if not available(family):
            pytest.skip(f"{family} is in transformers {FAMILIES[family].since} and later")
        if FAMILIES[family].softmax_layers(4) is not None and {*words} & {"autoprune", "var"}:
            pytest.skip(f"{family} has linear attention, and the method needs softmax attention in every layer")


def families_of(item) -> list[type]:
    """The families among the parameters of a test."""
    if not hasattr(item, "callspec"):
        return []
    from tests.helpers import CASES, FAMILIES, family_of

    values = item.callspec.params.values()
    return [FAMILIES[family_of(value)] for value in values if isinstance(value, str) and value in CASES]


def no_site(item) -> str | None:
    """Why a test's parameters do not go together: a strategy among them has a stage where its family has no site."""
    from tests.helpers import sites_of

    for family in (family for family in families_of(item) if family.refuses):
        for value in item.callspec.params.values():
            missing = sites_of(value) & family.refuses.keys() if isinstance(value, str) else set()
            if missing:
                return f"{family.name} refuses stages at the site {min(missing)}"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test of all families whose strategy is not a parameter is skipped where a family has no site for it."""
    from vtc.core.errors import UnsupportedError

    try:
        return (yield)
    except UnsupportedError as error:
        if not any(family.refuses and str(error) in refusals_of(family.name) for family in families_of(item)):
            raise
        pytest.skip(str(error))


@functools.cache
def refusals_of(name: str) -> list[str]:
    """What a family says where it has no encoder site or no decoder site."""
    from tests.helpers import model_of
    from vtc.core.errors import UnsupportedError
    from vtc.patching import find_family

    family, found = find_family(model_of(name)), []
    for site in (family.encoder_site, family.decoder_site):
        try:
            site()
        except UnsupportedError as error:
            found.append(str(error))
    return found


@functools.cache
def _methods() -> frozenset[str]:
    import vtc

    return frozenset(vtc.strategies())


@functools.cache
def _cases() -> frozenset[str]:
    from tests.helpers import CASES

    return frozenset(CASES)


def _number(*names: object) -> int:
    """The same for the same names in every process."""
    return zlib.crc32(" ".join(map(str, names)).encode())


def cover(cases: list) -> set:
    """Few of the cases of a test, among which each value of each parameter occurs. Which ones depends on the test's
    name, so that the values meet others in other tests."""
    cases = sorted(cases, key=lambda item: _number(item.nodeid))
    shown = {item: {(name, id(value)) for name, value in item.callspec.params.items()} for item in cases}
    chosen, missing = set(), set().union(*shown.values())
    while missing:
        best = max(cases, key=lambda item: len(shown[item] & missing))
        chosen.add(best)
        missing -= shown[best]
    return chosen


def first_of(few: set, cases: list) -> set:
    """As many of the cases as their mark says (`product(cases=1)`: Triton's interpreter is slow), not those left to
    `make test-full`; without a word of it, all."""
    most = cases[0].get_closest_marker("product").kwargs.get("cases")
    if most is None:
        return few
    quick = [item for item in few if not item.get_closest_marker("full")]
    return {*sorted(quick, key=lambda item: _number(item.nodeid))[:most]}


def of_few_values(test: str, cases: list) -> list:
    """The cases of some of the methods, one in EVERY, where there are many, and of as many families as another
    parameter has values, or FEW: other ones in each test, so that each method and family meets many tests."""
    values = defaultdict(set)
    for item in cases:
        for name, value in item.callspec.params.items():
            values[name].add(value if isinstance(value, str) else id(value))
    for name in [name for name in values if len(values[name]) >= 5 and values[name] <= _methods()]:
        in_order = sorted(values[name], key=lambda value: _number(test, value))
        values[name] = {*in_order[: -(-len(in_order) // EVERY)]}
        cases = [item for item in cases if item.callspec.params[name] in values[name]]
    names = [name for name in values if values[name] <= _cases()]
    if not names:
        return cases
    most = max([FEW, *(len(shown) for name, shown in values.items() if name not in names)])
    chosen = sorted(values[names[0]], key=lambda value: _number(test, value))[:most]
    return [item for item in cases if item.callspec.params[names[0]] in chosen]


def pairs(test: str, cases: list) -> set:
    """A case for each chosen pair of values of the two parameters with the most values: all pairs where these are few,
    else one in SHARE."""
    values = defaultdict(set)
    for item in cases:
        for name, value in item.callspec.params.items():
            values[name].add(id(value))
    wide = sorted(values, key=lambda name: (-len(values[name]), name))[:2]
    by_pair = defaultdict(list)
    for item in cases:
        by_pair[tuple(id(item.callspec.params[name]) for name in wide)].append(item)
    chosen = set()
    for members in by_pair.values():
        first = min(members, key=lambda item: _number(item.nodeid))
        names = [first.callspec.params[name] for name in wide]
        if len(by_pair) <= 50 or _number(test, *names) % SHARE == 0:
            chosen.add(first)
    return chosen


@pytest.fixture(scope="module")
def model():
    """LLaVA (4 layers in its tower, 6 in its decoder, 64 tokens per image), which a file of tests leaves as it was."""
    from tests.helpers import inputs_of, model_of, unharmed

    model = model_of("llava")
    with unharmed(model, inputs_of("llava", images=(1,))):
        yield model


@pytest.fixture
def poisoned():
    """What torch.empty and its kin give holds NaN (whole numbers: the largest), so that a place that a kernel forgets
    to write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture
def untouched(model):
    """The test leaves no trace on `model`."""
    from tests.helpers import state

    before = state(model)
    yield
    assert state(model) == before
