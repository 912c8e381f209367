"""Settings for all tests: one thread each (tiny tensors, several workers), no network, the same examples every time.

Also the fixtures that several files share. Without a GPU Triton kernels run in Triton's interpreter.
"""

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


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Of each test marked `product`, the cases beyond a cover of its parameters' values are marked `full`."""
    products = defaultdict(list)
    for item in items:
        if item.get_closest_marker("product") and hasattr(item, "callspec"):
            products[item.nodeid.partition("[")[0]].append(item)
    for cases in products.values():
        for item in set(cases) - cover(cases):
            item.add_marker(pytest.mark.full)


def cover(cases: list) -> set:
    """Few of the cases of a test, among which each value of each parameter occurs. Which ones depends on the test's
    name, so that the values meet others in other tests."""
    cases = sorted(cases, key=lambda item: zlib.crc32(item.nodeid.encode()))
    values = {item: {(name, id(value)) for name, value in item.callspec.params.items()} for item in cases}
    found, missing = set(), set().union(*values.values())
    while missing:
        best = max(cases, key=lambda item: len(values[item] & missing))
        found.add(best)
        missing -= values[best]
    return found


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
