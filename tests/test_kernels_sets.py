"""Greedy set choices against plain loops: picks and order, ties, duplicates, batches, precision, exclusion, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import vtc.kernels.cosine as cosine
import vtc.kernels.coverage.reference as coverage_reference
import vtc.kernels.dpp.leaders as leaders
from tests import naive_sets
from vtc.kernels.cosine import Cosines
from vtc.kernels.coverage import coverage_greedy
from vtc.kernels.diversity import maxmin_greedy, maxsum_greedy
from vtc.kernels.dpp import dpp_greedy

KINDS = ("random", "duplicates", "constant", "zeros", "integers")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
METHODS = pytest.mark.parametrize("method", ["lazy", "dense"])


def make(shape, kind="random", seed=0, dtype=torch.float32):
    """Values of `shape` whose entries along the last axis but one repeat, vanish or are small whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    n = shape[-2]
    if kind == "duplicates":
        x = x[..., torch.randint(0, n // 3 + 1, (n,), generator=generator), :]
    if kind == "constant":
        x = x[..., :1, :].repeat(*[1] * (len(shape) - 2), n, 1)
    if kind == "zeros":
        x = x * (torch.rand(*shape[:-1], 1, generator=generator) < 0.5)
    if kind == "integers":
        x = x.round()
    return x.to(dtype)


@st.composite
def cases(draw):
    """(kind, seed, B, N, width, k, dtype, excluded or None)"""
    units, n = draw(st.integers(1, 3)), draw(st.one_of(st.integers(1, 6), st.integers(7, 40)))
    k = draw(st.one_of(st.sampled_from((1, n)), st.integers(0, n)))
    share = draw(st.sampled_from((None, 0.2, 0.7, 1.0)))
    seed = draw(st.integers(0, 10**6))
    hidden = None if share is None else torch.rand(units, n, generator=torch.Generator().manual_seed(seed)) < share
    dtype = draw(st.sampled_from((torch.float32, torch.float64)))
    return draw(st.sampled_from(KINDS)), seed, units, n, draw(st.integers(1, 70)), k, dtype, hidden


def per_unit(function, *batched):
    """The picks of a plain loop for every unit, as lists."""
    return [function(*[None if x is None else x[b] for x in batched]) for b in range(len(batched[0]))]


@METHODS
@settings(max_examples=150)
@given(cases())
def test_coverage_is_the_plain_loop(method, case):
    kind, seed, units, n, rows, k, dtype, hidden = case
    weights = make((units, n, rows), kind, seed, dtype).abs().transpose(1, 2)
    expected = per_unit(
        lambda w, e: naive_sets.coverage(w, k, e), weights, hidden if hidden is not None else [None] * 3
    )
    for given_weights in (weights, weights.contiguous()):
        found = coverage_greedy(given_weights, k, excluded=hidden, method=method)
        assert found.dtype == torch.long
        assert found.tolist() == expected


@settings(max_examples=150)
@given(cases(), st.booleans())
def test_maxmin_is_the_plain_loop(case, random_first):
    kind, seed, units, n, width, k, dtype, hidden = case
    features = make((units, n, width), kind, seed, dtype)
    first = torch.tensor([(seed + 7 * b) % n for b in range(units)]) if random_first else None
    others = hidden if hidden is not None else [None] * units
    starts = [None] * units if first is None else first.tolist()
    similarity = Cosines(features).matrix
    expected = per_unit(lambda s, f, e: naive_sets.maxmin(s, k, f, e), similarity, starts, others)
    assert maxmin_greedy(features, k, first=first, excluded=hidden).tolist() == expected


@settings(max_examples=100)
@given(cases())
def test_maxsum_is_the_plain_loop(case):
    kind, seed, units, n, width, k, dtype, _ = case
    features = make((units, n, width), kind, seed, dtype)
    first = torch.tensor([(seed + 7 * b) % n for b in range(units)])
    expected = per_unit(lambda s, f: naive_sets.maxsum(s, f, k), Cosines(features).matrix, first.tolist())
    assert maxsum_greedy(features, first, k).tolist() == expected


@settings(max_examples=100)
@given(cases())
def test_dpp_is_the_ratio_of_determinants(case):
    """As far as the definition is clear of rounding; beyond that no index comes twice."""
    kind, seed, units, n, width, k, dtype, _ = case
    features = make((units, n, width), kind, seed, dtype)
    quality = torch.rand(units, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) + 0.01
    found = dpp_greedy(features, quality, k)
    limit = 1e-7 if dtype == torch.float64 else 1e-2
    for b in range(units):
        assert len(set(found[b].tolist())) == k
        expected, margins = naive_sets.dpp(features[b], quality[b], min(k, 6))
        clear = next((i for i, margin in enumerate(margins) if margin < limit), len(margins))
        assert found[b, :clear].tolist() == expected[:clear]


def choices(features, k):
    """The picks of every function on the same features."""
    start = torch.zeros(len(features), dtype=torch.long)
    weights = torch.softmax(features @ features.transpose(1, 2), 2)
    return {
        "lazy": coverage_greedy(weights, k, method="lazy"),
        "dense": coverage_greedy(weights, k, method="dense"),
        "maxmin": maxmin_greedy(features, k),
        "maxsum": maxsum_greedy(features, start, k),
        "dpp": dpp_greedy(features, features.norm(dim=2), k),
    }


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, 1, 20, 48])
def test_each_index_once_and_units_apart(kind, k, dtype):
    """No duplicates whatever the tokens; a unit has the same picks alone; tokens are not changed."""
    features = make((3, 48, 24), kind, 5, dtype)
    before = features.clone()
    alone = [choices(features[b : b + 1], k) for b in range(3)]
    for name, found in choices(features, k).items():
        assert found.shape == (3, k), name
        assert all(len(set(row)) == k for row in found.tolist()), name
        assert torch.equal(found, torch.cat([single[name] for single in alone])), name
    assert torch.equal(features, before)


def test_equal_tokens_in_order():
    """Where nothing distinguishes the tokens, the picks are the lowest indices."""
    for features in (torch.zeros(1, 30, 4), torch.eye(4)[:1].repeat(1, 30, 1)):
        for name, found in choices(features, 12).items():
            assert found[0].tolist() == list(range(12)), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_each_index_once_with_nan(value):
    features = make((1, 20, 6))
    features[0, 3:7] = value
    assert all(len(set(found[0].tolist())) == 20 for found in choices(features, 20).values())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [1, 7, 8, 33, 577, 2895, 40000])
def test_a_gain_has_the_same_bits_in_every_batch(length, threads):
    """What makes the lazy form exact; also that a gain never rises with coverage, bit by bit."""
    rows, covered = make((1, 33, length)).abs(), make((1, 1, length), seed=1).abs() / 2
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        full = coverage_reference._gains(rows, covered)
        for size in (2, 3, 16):
            index = torch.randperm(33, generator=torch.Generator().manual_seed(size))[:size]
            assert torch.equal(coverage_reference._gains(rows.index_select(1, index), covered), full[:, index])
        assert torch.equal(coverage_reference._all_gains(rows, covered, 10 * length), full)
        for j in range(4):
            covered = torch.maximum(covered, rows[:, j, None])
            assert bool((coverage_reference._gains(rows, covered) <= full).all())
    finally:
        torch.set_num_threads(before)


@METHODS
def test_coverage_in_small_blocks(method, monkeypatch):
    weights = make((3, 50, 40), seed=3).abs()
    expected = [naive_sets.coverage(w, 25) for w in weights]
    monkeypatch.setattr(coverage_reference, "BLOCK", {"cpu": 2 * 50 * 7})
    assert coverage_greedy(weights, 25, method=method).tolist() == expected


def test_coverage_reads_half_precision_as_float32():
    weights = make((2, 60, 50)).abs().to(torch.bfloat16)
    assert torch.equal(coverage_greedy(weights, 20), coverage_greedy(weights.float(), 20))


def test_cosines(monkeypatch):
    """Blocks, mirrored halves, zero vectors and the second-largest entry, with and without the matrix."""
    features = make((2, 11, 5), "zeros", 2, torch.float64)
    expected = torch.nn.functional.cosine_similarity(features[:, :, None], features[:, None], dim=3)
    hidden = torch.arange(11).expand(2, 11) % 4 == 0
    monkeypatch.setattr(cosine, "BLOCK", 3)
    for limit in (2 * 11 * 11, 0):
        monkeypatch.setattr(cosine, "GRAM", limit)
        monkeypatch.setattr(cosine, "ONE", limit)
        found = Cosines(features)
        assert (found.matrix is None) == (limit == 0)
        rows = torch.stack([found.rows(torch.tensor([j, 10 - j])) for j in range(11)], 1)
        torch.testing.assert_close(rows, torch.stack([expected[0], expected[1].flip(0)]))
        torch.testing.assert_close(found.second(), expected.sort(2).values[..., -2])
        shown = expected.masked_fill(hidden[:, None], -torch.inf)
        torch.testing.assert_close(found.second(hidden), shown.sort(2).values[..., -2])
        if limit:
            assert torch.equal(found.matrix, found.matrix.mT)


def test_long_units_have_the_same_picks(monkeypatch):
    features = make((2, 60, 16), seed=9, dtype=torch.float64)
    names = ("maxmin", "maxsum", "dpp")
    expected = choices(features, 15)
    monkeypatch.setattr(cosine, "GRAM", 0)
    monkeypatch.setattr(cosine, "ONE", 0)
    monkeypatch.setattr(leaders, "MOST", 0)
    found = choices(features, 15)
    assert all(torch.equal(found[name], expected[name]) for name in names)


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that an operation returned."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]
        self.entries = max([self.entries, *[x.numel() for x in tensors]])
        return out


def test_long_units_hold_no_matrix(monkeypatch):
    features = make((1, 4200, 4))
    monkeypatch.setattr(leaders, "MOST", 4096)
    monkeypatch.setattr(cosine, "ONE", 4096**2)
    with Largest() as seen:
        maxmin_greedy(features, 3)
        maxsum_greedy(features, torch.tensor([1]), 3)
        dpp_greedy(features, torch.ones(1, 4200), 3)
    assert seen.entries <= cosine.BLOCK * 4200


def test_autocast_changes_nothing():
    features = make((1, 40, 16))
    expected = choices(features, 15)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(maxmin_greedy(features, 15), expected["maxmin"])
        assert torch.equal(dpp_greedy(features, features.norm(dim=2), 15), expected["dpp"])


@DTYPES
def test_dpp_beyond_the_rank(dtype):
    """Three dimensions carry three picks, five distinct tokens five; the rest are the lowest indices, without NaN."""
    generator = torch.Generator().manual_seed(0)
    quality = torch.rand(1, 40, generator=generator).to(dtype) + 0.1
    flat = torch.randn(1, 40, 3, generator=generator).to(dtype)
    repeated = torch.randn(1, 5, 64, generator=generator).to(dtype).repeat(1, 8, 1)
    for features, rank in ((flat, 3), (repeated, 5)):
        found = dpp_greedy(features, quality, 30)[0].tolist()
        assert found[:rank] == naive_sets.dpp(features[0], quality[0], rank)[0]
        assert found[rank:] == [j for j in range(40) if j not in found[:rank]][: 30 - rank]


def test_dpp_quality_of_very_different_size():
    """A token of tiny quality is not taken for a dependent one: it comes before exact copies of better tokens."""
    features = torch.cat([torch.eye(6), torch.eye(6)[:3]])[None]
    quality = torch.tensor([[1.0, 0.9, 0.8, 1e-6, 2e-6, 3e-6, 0.95, 0.85, 0.75]])
    assert dpp_greedy(features, quality, 9)[0].tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]


@pytest.mark.slow
def test_a_long_image():
    """2880 tokens, 320 picks, in the same order as a loop that recomputes everything."""
    features = make((1, 2880, 64)) + 0.5 * make((1, 2880, 64), "duplicates", 1)
    matrix = Cosines(features).matrix[0]
    weights = torch.softmax(matrix / 0.2, 1)
    rows, covered = weights.t().contiguous(), torch.zeros(2880)
    picks, far = [], [int((1 - matrix).topk(2, dim=0, largest=False).values[1].argmax())]
    for _ in range(320):
        gain = (rows - covered).clamp_(min=0).sum(1)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        covered = torch.maximum(covered, rows[picks[-1]])
    while len(far) < 320:
        distance = (1 - matrix[far]).amin(0)
        distance[far] = -1
        far.append(int(distance.argmax()))
    assert coverage_greedy(weights[None], 320)[0].tolist() == picks
    assert maxmin_greedy(features, 320)[0].tolist() == far


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: coverage_greedy(x[0], 1), r"weights are torch.float32 \[8, 4\]; possible: floats \[B, R, N\]"),
        (lambda x: coverage_greedy(x, 5), "k=5 for 4 tokens; possible: 0 to 4"),
        (lambda x: coverage_greedy(x, 1, method="eager"), "method='eager'; possible: 'lazy', 'dense' or None"),
        (lambda x: coverage_greedy(x, 1, excluded=torch.zeros(2, 8)), r"possible: bool \[2, 4\]"),
        (lambda x: maxmin_greedy(x.long(), 1), r"features are torch.int64 \[2, 8, 4\]; possible: floats \[B, N, D\]"),
        (lambda x: maxmin_greedy(x, -1), "k=-1 for 8 tokens; possible: 0 to 8"),
        (lambda x: maxmin_greedy(x, 1, excluded=torch.zeros(2, 8)), r"possible: bool \[2, 8\]"),
        (lambda x: maxsum_greedy(x, torch.zeros(2), 1), r"first is torch.float32 \[2\]; possible: int64 \[2\]"),
        (lambda x: dpp_greedy(x, torch.ones(2, 7), 1), r"quality is torch.float32 \[2, 7\]; possible: floats \[2, 8\]"),
        (lambda x: dpp_greedy(x, torch.ones(2, 8), 9), "k=9 for 8 tokens; possible: 0 to 8"),
        (lambda x: dpp_greedy(x[0], torch.ones(2, 8), 1), r"features are .*; possible: floats \[B, N, D\]"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 8, 4))
