"""Top-k and gather in Triton give exactly what the reference gives: rows, packed segments, ties, NaN, strides."""

import pytest
import torch

import vtc.kernels.topk.triton as kernels
from tests.helpers_triton import DEVICE, DTYPES, both
from vtc.kernels import backend
from vtc.kernels.topk import topk_gather, topk_sorted

pytestmark = [pytest.mark.product(cases=1), pytest.mark.usefixtures("poisoned")]
SIZES = (1, 63, 577, 1000, 2881)
TINY = 1e-40  # a denormal of float32


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def same(run):
    """Asserts that what `run` gives is equal with both implementations, and returns it."""
    expected, found = both(run)
    pairs = [(expected, found)] if isinstance(expected, torch.Tensor) else list(zip(expected, found, strict=True))
    for left, right in pairs:
        assert (left is None) == (right is None)
        if left is not None:
            assert left.dtype == right.dtype
            assert left.shape == right.shape
            assert torch.equal(left, right)
    return found


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows(n, dtype):
    """Half precision has many ties among 2881 scores."""
    scores = random(3, n, dtype=dtype)
    for k in sorted({0, 1, n // 9, n // 2, n - 1, n}):
        same(lambda k=k: topk_sorted(scores, k))


@pytest.mark.parametrize("n", [kernels.HELD - 1, kernels.HELD, kernels.HELD + 1, 3 * kernels.HELD + 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_longer_than_what_is_held(n, dtype):
    scores = random(1, n, dtype=dtype)
    for k in (1, n // 9, n):
        same(lambda k=k: topk_sorted(scores, k))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_lower_index(dtype):
    scores = torch.tensor([[0.0, 1, 1, 0, 1], [2, 2, 2, 2, 2], [-1, -2, -1, -2, -1]], device=DEVICE, dtype=dtype)
    found = same(lambda: topk_sorted(scores, 2))
    assert found.tolist() == [[1, 2], [0, 1], [0, 2]]
    found = same(lambda: topk_sorted(scores, 4))
    assert found.tolist() == [[0, 1, 2, 4], [0, 1, 2, 3], [0, 1, 2, 4]]


@pytest.mark.parametrize("k", [1, 20000, 25000])
def test_all_equal_over_several_blocks(k):
    found = same(lambda: topk_sorted(torch.zeros(1, 25000, device=DEVICE), k))
    assert torch.equal(found[0], torch.arange(k, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype):
    """NaN of either sign above infinity, both zeros equal, denormals apart from zero."""
    top = torch.finfo(dtype).max
    small = TINY if dtype != torch.float16 else 6e-8
    values = [-torch.inf, -0.0, torch.nan, 0.0, top, -torch.nan, torch.inf, -top, small, -small, -0.0, 0.0]
    scores = torch.tensor([values, values[::-1], values[6:] + values[:6]], device=DEVICE, dtype=dtype)
    scores[1] = torch.where(scores[1].isnan(), -scores[1].abs(), scores[1])
    for k in (0, 1, 2, 5, 6, 7, len(values)):
        found = same(lambda k=k: topk_sorted(scores, k))
        if k == 2:
            assert bool(scores.gather(1, found).isnan().all())
        if k == 6:
            assert found[0].tolist() == [1, 2, 4, 5, 6, 8]


def test_strides():
    scores = random(577, 6)
    for view in (scores.t(), scores.t()[::2, 5::3], scores[:, :1].t().expand(4, 577)):
        same(lambda view=view: topk_sorted(view, 50))


def test_no_rows():
    assert same(lambda: topk_sorted(torch.zeros(0, 5, device=DEVICE), 2)).shape == (0, 2)
    assert same(lambda: topk_sorted(torch.zeros(2, 0, device=DEVICE), 0)).shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64], ids=str)
def test_other_dtypes_are_the_reference(dtype):
    scores = (random(2, 40) * 3).to(dtype)
    same(lambda: topk_sorted(scores, 7))


LENGTHS = (63, 0, 1, 577, 5, 0, 130)
COUNTS = (10, 0, 1, 100, 0, 0, 130)
BOUNDS = tuple(sum(LENGTHS[:i]) for i in range(len(LENGTHS) + 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("place", [None, (), (3,), (2, 3)], ids=str)
def test_packed(dtype, place):
    """Segments of different lengths, empty ones and ones that keep nothing or all among them."""
    total = BOUNDS[-1]
    scores, features = random(total, dtype=dtype), random(total, 33, dtype=dtype)
    positions = None if place is None else torch.randint(999, (*place, total)).to(DEVICE)
    indices, rows, places = same(lambda: topk_gather(scores, COUNTS, BOUNDS, features, positions))
    assert indices.shape == (sum(COUNTS),)
    assert torch.equal(rows, features[indices])
    assert (places is None) if place is None else torch.equal(places, positions[..., indices])


@pytest.mark.parametrize("dtype", [*kernels.MOVED, torch.float64, torch.complex64], ids=str)
def test_what_is_moved_is_not_changed(dtype):
    """NaN stay what they are."""
    scores, x = random(90), (random(90, 5) * 9).to(dtype)
    if x.is_floating_point():
        x[::2] = torch.nan
    indices, rows, places = both(lambda: topk_gather(scores, [30, 4], [0, 60, 90], x, x.t()))[1]
    assert rows.dtype == places.dtype == dtype
    for moved in (rows, places.t()):
        torch.testing.assert_close(moved, x[indices], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("width", [0, 1, 512, 1200])
def test_widths(width):
    scores, features = random(577), random(577, width, dtype=torch.bfloat16)
    same(lambda: topk_gather(scores, [61], [0, 577], features))


def test_packed_strides():
    scores, features, positions = random(80, 2)[:, 1], random(40, 80).t()[:, ::3], random(80, 3).t()
    same(lambda: topk_gather(scores, [9, 20], [0, 30, 80], features, positions))


def test_packed_ties_and_nan():
    scores = torch.tensor([1.0, 1, 1, torch.nan, 0, torch.nan, 0, 0], device=DEVICE)
    assert same(lambda: topk_gather(scores, [2, 3], [0, 3, 8]))[0].tolist() == [0, 1, 3, 4, 5]


def test_packed_longer_than_what_is_held():
    total = kernels.HELD + 100
    scores, positions = random(total + 7), torch.arange(total + 7, device=DEVICE)
    indices, _, places = same(lambda: topk_gather(scores, [total // 2, 3], [0, total, total + 7], None, positions))
    assert torch.equal(indices, places)


@pytest.mark.parametrize("counts, bounds", [((), (0,)), ((0,), (0, 0)), ((0, 0), (0, 4, 4))])
def test_nothing_kept(counts, bounds):
    total = bounds[-1]
    scores, features, positions = random(total), random(total, 8), random(3, total)
    indices, rows, places = same(lambda: topk_gather(scores, counts, bounds, features, positions))
    assert [x.shape for x in (indices, rows, places)] == [(0,), (0, 8), (3, 0)]


def test_gradients_reach_what_is_gathered():
    """Differentiable features are gathered by torch, with either implementation."""
    scores, features = random(20), random(20, 4).requires_grad_()
    for choice in ("reference", "triton"):
        with backend.use(choice):
            indices, rows, _ = topk_gather(scores, [3, 2], [0, 10, 20], features)
        (gradient,) = torch.autograd.grad(rows.sum(), features)
        assert torch.equal(gradient.sum(1).nonzero()[:, 0], indices)


@pytest.mark.parametrize("change, words", [
    (dict(scores=torch.zeros(2, 4)), r"scores must be \[T\], got shape \(2, 4\)"),
    (dict(counts=torch.tensor([1, 1])), "counts is a tensor on cpu; possible: a list of ints"),
    (dict(counts=[1]), "cu_seqlens has 3 bounds, 1 counts need 2"),
    (dict(cu_seqlens=[0, 2, 5]), "from 0 to 5; possible: from 0 to 4"),
    (dict(cu_seqlens=[1, 2, 4]), "from 1 to 4; possible: from 0 to 4"),
    (dict(counts=[0, 0, 0], cu_seqlens=[0, 4, 3, 4]), "falls from 4 to 3"),
    (dict(counts=[1, 3]), r"counts\[1\]=3 is outside 0\.\.2"),
    (dict(counts=[-1, 1]), r"counts\[0\]=-1 is outside 0\.\.2"),
    (dict(features=torch.zeros(3, 2)), r"features must be \[4, D\], got shape \(3, 2\)"),
    (dict(positions=torch.zeros(4, 3)), r"positions must be \[\.\.\., 4\], got shape \(4, 3\)"),
    (dict(features=torch.zeros(4, 2, device="meta")), "features is on meta, scores on cpu"),
])  # fmt: skip
def test_refusals(change, words):
    given = dict(scores=torch.zeros(4), counts=[1, 1], cu_seqlens=[0, 2, 4]) | change
    with pytest.raises(ValueError, match=words):
        topk_gather(**given)
    with pytest.raises(ValueError, match=words):
        kernels.topk_gather(**given)


@pytest.mark.parametrize("shape, k", [((1, 3), 4), ((1, 3), -1), ((3,), 1)])
def test_refusals_of_rows(shape, k):
    for run in (topk_sorted, kernels.topk_sorted):
        with pytest.raises(ValueError, match="must be|outside 0..3"):
            run(torch.zeros(shape, device=DEVICE), k)


def test_operators():
    """Schema, fake tensors and tracing of the three operators."""
    scores = random(70)
    torch.library.opcheck(torch.ops.vtc.topk_sorted.default, (scores.view(2, 35), 4))
    for positions in (None, torch.arange(210, device=DEVICE).view(3, 70)):
        torch.library.opcheck(torch.ops.vtc.topk_packed.default, (scores, [3, 0, 8], [0, 30, 30, 70], positions))
    torch.library.opcheck(torch.ops.vtc.gather_rows.default, (random(9, 5), torch.tensor([0, 3, 8], device=DEVICE)))


def test_compiled_whole():
    """One graph, and nothing is looked at on the host."""

    def run(scores, features, positions):
        best = topk_sorted(scores[None], 5)
        return best, *topk_gather(scores * 2, [3, 4], [0, 20, 50], features, positions)

    given = random(50), random(50, 6), torch.arange(50, device=DEVICE)
    with backend.use("triton"):
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(*given)
    for left, right in zip(both(lambda: run(*given))[0], found, strict=True):
        assert torch.equal(left, right)
