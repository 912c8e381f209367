"""Greedy choices of sets in Triton against the reference: picks and their order, ties, exclusion, batches, fallbacks.

Where sums are exact (small whole numbers) or the matrix is the same, the picks must be the reference's; elsewhere the
inputs have no near-ties.
"""

import pytest
import torch

import vtc.kernels.cosine as cosine
import vtc.kernels.coverage.triton as coverage
import vtc.kernels.diversity.triton as diversity
import vtc.kernels.dpp.triton  # noqa: F401
from tests.helpers_triton import DEVICE, DTYPES, both
from vtc.kernels import backend
from vtc.kernels.cosine import Cosines
from vtc.kernels.coverage import coverage_greedy
from vtc.kernels.diversity import maxmin_greedy, maxsum_greedy
from vtc.kernels.dpp import dpp_greedy

pytestmark = pytest.mark.product(cases=1)

LONG_SIZES = [pytest.param(*size, marks=pytest.mark.full) for size in ((2, 577, 12), (1, 1000, 8))]
SIZES = [(2, 1, 1), (2, 33, 33), (1, 63, 20), (1, 577, 6), *LONG_SIZES]  # B, N, k
LONG = pytest.param(1, 2881, 6, marks=pytest.mark.full)
SIZED = pytest.mark.parametrize("units, tokens, k", [*SIZES, LONG])


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def hides(units, tokens, share, seed=1):
    return (torch.rand(units, tokens, generator=torch.Generator().manual_seed(seed)) < share).to(DEVICE)


def whole(*shape, seed=0, most=3):
    """Small whole numbers, float32."""
    return torch.randint(0, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float().to(DEVICE)


def starts(units, tokens):
    return torch.tensor([(7 * b + tokens // 2) % tokens for b in range(units)], device=DEVICE)


def cosines(units, tokens, width=8):
    """The reference's, of tokens of which some are equal and some are zero."""
    x = draw(units, tokens, width)
    x[:, tokens // 2 :: 3] = x[:, :1].clone()
    x[:, 1::5] = 0
    with backend.use("reference"):
        return Cosines(x)


def same(run):
    """Triton's picks, after a comparison with the reference's."""
    expected, found = both(run)
    assert found.dtype == torch.long
    assert found.tolist() == expected.tolist()
    return found


@SIZED
def test_maxmin(units, tokens, k, poisoned):
    """Identical, ties included, as the matrix is the same."""
    given = cosines(units, tokens)
    same(lambda: maxmin_greedy(given, k))
    same(lambda: maxmin_greedy(given, k, first=starts(units, tokens)))


@pytest.mark.parametrize("share", [0.3, 0.95, 1.0])
def test_maxmin_with_exclusion(share, poisoned):
    """More picks than tokens that are left, too; what is excluded does not count as a neighbour."""
    given, excluded = cosines(2, 40), hides(2, 40, share)
    same(lambda: maxmin_greedy(given, 30, excluded=excluded))
    same(lambda: maxmin_greedy(given, 40, first=starts(2, 40), excluded=excluded))
    same(lambda: maxmin_greedy(given, 3, excluded=excluded[:, :1].expand(2, 40)))


@SIZED
def test_maxsum(units, tokens, k, poisoned):
    given = cosines(units, tokens)
    same(lambda: maxsum_greedy(given, starts(units, tokens), k))
    same(lambda: maxsum_greedy(given, starts(units, 2 * tokens)[::1] % tokens, min(k, 3)))


@SIZED
def test_dpp(units, tokens, k, poisoned):
    features, quality = draw(units, tokens, 48), draw(units, tokens, seed=1).abs() + 0.05
    with backend.use("reference"):
        given = Cosines(features)
    same(lambda: dpp_greedy(given, quality, k))


def test_dpp_beyond_the_rank(poisoned):
    """Three dimensions carry three picks, seven distinct tokens seven, a zero token and quality 0 none; the rest of the
    picks are the lowest indices."""
    quality = draw(2, 40, seed=1).abs() + 0.1
    for features in (draw(2, 40, 3), draw(2, 7, 64).repeat(1, 6, 1)[:, :40]):
        same(lambda features=features: dpp_greedy(features, quality, 30))
    features, quality = draw(2, 40, 64), quality.clone()
    features[:, 3:20] = 0
    quality[:, 25:] = 0
    found = same(lambda: dpp_greedy(features, quality, 40))
    assert found[:, 8:].tolist() == [[*range(3, 20), *range(25, 40)]] * 2


def test_dpp_of_exact_ties(poisoned):
    """Orthogonal tokens and copies of them, with qualities whose squares are exact."""
    features = torch.eye(24, device=DEVICE).repeat(2, 1)[None]
    quality = 2.0 ** whole(1, 48, most=2)
    found = same(lambda: dpp_greedy(features, quality, 48))
    assert found[0, :4].tolist() == quality[0].argsort(stable=True, descending=True)[:4].tolist()


@SIZED
@pytest.mark.parametrize("rows", [1, 600])
def test_coverage(units, tokens, k, rows, poisoned):
    """Exact ties: sums of whole numbers, columns that are equal, tokens that gain nothing."""
    weights = whole(units, rows, tokens, most=9) * (whole(units, 1, tokens, seed=1) > 0)
    weights[:, :, tokens // 2 :: 3] = weights[:, :, :1].clone()
    same(lambda: coverage_greedy(weights, k))


@pytest.mark.parametrize("units, tokens, k", SIZES[1:5])
def test_coverage_of_a_softmax(units, tokens, k, poisoned):
    x = draw(units, tokens, 16)
    weights = torch.softmax(x @ x.mT, 2)
    found = same(lambda: coverage_greedy(weights, k))
    assert same(lambda: coverage_greedy(weights.mT.contiguous().mT, k)).tolist() == found.tolist()


@pytest.mark.parametrize("share", [0.3, 0.95, 1.0])
def test_coverage_with_exclusion(share, poisoned):
    weights, excluded = whole(2, 30, 40), hides(2, 40, share)
    found = same(lambda: coverage_greedy(weights, 40, excluded=excluded))
    for row, hidden in zip(found.tolist(), excluded):
        last = hidden.nonzero().flatten().tolist()
        assert row[len(row) - len(last) :] == last
    same(lambda: coverage_greedy(weights, 4, excluded=excluded[:, :1].expand(2, 40)))


def test_coverage_of_equal_rows_ties_exactly(poisoned):
    """Sums that round: a copy is never ahead of the token that it is a copy of."""
    x = draw(1, 40, 700).abs()
    found = same(lambda: coverage_greedy(x.repeat(1, 2, 1).mT, 40))
    assert sorted(found[0].tolist()) == list(range(40))


def test_coverage_that_is_complete(poisoned):
    """Once nothing is gained, and where no row asks for anything, the lowest indices follow."""
    weights = torch.zeros(1, 5, 50, device=DEVICE)
    weights[0, :, 17] = 1.0
    assert same(lambda: coverage_greedy(weights, 4))[0].tolist() == [17, 0, 1, 2]
    assert same(lambda: coverage_greedy(weights[:, :0], 3))[0].tolist() == [0, 1, 2]


def choices(features, k):
    """The picks of every function."""
    weights = torch.softmax(features.float() @ features.float().mT / 8, 2).to(features.dtype)
    return {
        "coverage": coverage_greedy(weights, k),
        "maxmin": maxmin_greedy(features, k),
        "maxsum": maxsum_greedy(features, starts(*features.shape[:2]), k),
        "dpp": dpp_greedy(features, features.float().norm(dim=2), k),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_features_of_every_dtype(dtype, poisoned):
    """From the features on, each form with its own matrix; a unit has the same picks alone."""
    features = draw(3, 63, 32, dtype=dtype)
    before = features.clone()
    expected, found = both(lambda: choices(features[:, ::2], 10))
    for name, picks in found.items():
        assert picks.tolist() == expected[name].tolist(), name
    with backend.use("triton"):
        alone = choices(features[1:2, ::2], 10)
    assert all(alone[name][0].tolist() == found[name][1].tolist() for name in ("coverage", "maxmin", "dpp"))
    assert torch.equal(features, before)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_each_index_once_whatever_the_features(value):
    features = draw(1, 20, 6)
    features[0, 3:7] = value
    with backend.use("triton"):
        found = choices(features, 20)
    for name, picks in found.items():
        assert sorted(picks[0].tolist()) == list(range(20)), name


def test_without_picks_or_units():
    for features, k in ((draw(2, 5, 3), 0), (draw(0, 5, 3), 2), (draw(2, 0, 3), 0)):
        with backend.use("triton"):
            assert dpp_greedy(features, features[..., 0], k).shape == (len(features), k)
            assert maxmin_greedy(features, k).shape == (len(features), k)
            assert coverage_greedy(features.mT.abs(), k).shape == (len(features), k)


def test_units_that_are_the_references(monkeypatch):
    """Those without a matrix, and those whose numbers do not fit into registers."""
    features = draw(2, 40, 16)
    expected = both(lambda: choices(features, 9))[1]
    for limits in ({"GRAM": 0, "GRAM_CUDA": 0}, {"LONGEST": 39}):
        with monkeypatch.context() as patch:
            for name, limit in limits.items():
                for module in [cosine] if name != "LONGEST" else [coverage, diversity]:
                    patch.setattr(module, name, limit)
            with backend.use("triton"):
                found = choices(features, 9)
        assert {name: picks.tolist() for name, picks in found.items()} == {
            name: picks.tolist() for name, picks in expected.items()
        }


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: coverage_greedy(x[0], 1), r"weights are torch.float32 \[8, 4\]; possible: floats \[B, R, N\]"),
        (lambda x: coverage_greedy(x, 1, method="eager"), "method='eager'; possible: 'lazy', 'dense' or None"),
        (lambda x: maxmin_greedy(x, 9), "k=9 for 8 tokens; possible: 0 to 8"),
        (lambda x: maxmin_greedy(x, 1, excluded=x[..., 0]), r"possible: bool \[2, 8\]"),
        (lambda x: maxsum_greedy(x, x[:, 0, 0], 1), r"first is torch.float32 \[2\]; possible: int64 \[2\]"),
        (lambda x: dpp_greedy(x, x[..., :7, 0], 1), r"quality is torch.float32 \[2, 7\]; possible: floats \[2, 8\]"),
    ],
)
def test_errors(call, message):
    with backend.use("triton"), pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 8, 4, device=DEVICE))


def test_operators():
    matrix, first, excluded = cosines(2, 9).matrix, starts(2, 9), hides(2, 9, 0.3)
    for given in ((matrix, 3, first, excluded), (matrix, 3, None, None), (matrix.mT, 0, first, None)):
        torch.library.opcheck(torch.ops.vtc.maxmin_greedy, given)
    torch.library.opcheck(torch.ops.vtc.maxsum_greedy, (matrix, 3, first))
    torch.library.opcheck(torch.ops.vtc.dpp_greedy, (matrix, draw(2, 9).abs(), 3))
    for given in ((matrix.abs(), 3, excluded), (matrix.abs(), 3, None)):
        torch.library.opcheck(torch.ops.vtc.coverage_greedy, given)


def test_compiles_whole():
    """Choices as part of a graph without a break."""
    features = draw(2, 20, 6)
    with backend.use("triton"):
        run = torch.compile(lambda x: choices(x, 5), fullgraph=True, backend="aot_eager")
        for name, picks in choices(features, 5).items():
            assert torch.equal(run(features)[name], picks), name
