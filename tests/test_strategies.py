"""Every method as a function of tensors: counts, order, ties; HiPrune against a plain loop; selections applied."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.errors import PatchError
from vtc.kernels.grid import strided_grid
from vtc.selection import Merge, Selection
from vtc.signals import AttentionColumns, ClsAttention, Context, Encoder, Features
from vtc.strategies import METHODS
from vtc.strategies.hiprune import select_tokens

ENCODER = Encoder("test", depth=8, has_cls=True, global_layers=tuple(range(8)))
methods = pytest.mark.parametrize("method", METHODS.names())
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6), st.data())
examples = settings(max_examples=40)


def context(stage, rows, columns, count, units=1, seed=0, values=None):
    """A context with random (or constant) signals of the right shape and scale."""
    generator = torch.Generator().manual_seed(seed)
    tokens = rows * columns
    signals = {}
    for signal in stage.needs(ENCODER):
        shape = (units, tokens, 4) if isinstance(signal, Features) else (units, tokens)
        assert isinstance(signal, AttentionColumns | ClsAttention | Features)
        signals[signal] = torch.rand(shape, generator=generator) if values is None else torch.full(shape, values)
    return Context(tokens, count, (rows, columns), tuple(range(units)), torch.device("cpu"), signals)


def check(selection, tokens, count, units):
    """Exactly `count` ascending, distinct, possible indices in each unit."""
    assert selection.check(tokens) is selection
    assert selection.keep.shape == (units, count)
    assert selection.valid is None or bool(selection.valid.all())
    assert bool((selection.keep[:, 1:] > selection.keep[:, :-1]).all())
    assert int(selection.keep.min()) >= 0
    assert int(selection.keep.max()) < tokens


@methods
@examples
@given(shape=shapes)
def test_exactly_count_sorted_and_unique(method, shape):
    """For random rasters, budgets and scores; the same again for the same input; each unit as if it were alone."""
    rows, columns, units, seed, data = shape
    count = data.draw(st.integers(1, rows * columns))
    stage = METHODS[method]()
    given_context = context(stage, rows, columns, count, units, seed)
    selection = stage.select(given_context, ENCODER)
    check(selection, rows * columns, count, units)
    assert torch.equal(stage.select(given_context, ENCODER).keep, selection.keep)
    last = {signal: values[-1:] for signal, values in given_context.signals.items()}
    alone = Context(rows * columns, count, (rows, columns), (units - 1,), torch.device("cpu"), last)
    assert torch.equal(stage.select(alone, ENCODER).keep[0], selection.keep[-1])


@methods
@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 7), (7, 1), (6, 6), (3, 8)])
def test_one_and_all(method, rows, columns):
    """k=1 keeps one token, k=N every token."""
    stage, tokens = METHODS[method](), rows * columns
    one = stage.select(context(stage, rows, columns, 1, 2), ENCODER)
    check(one, tokens, 1, 2)
    every = stage.select(context(stage, rows, columns, tokens, 2), ENCODER)
    assert torch.equal(every.keep, torch.arange(tokens).expand(2, -1))
    if every.merge is not None:
        features = torch.randn(2, tokens, 3)
        torch.testing.assert_close(every.apply_features(features), features)


def test_ties_go_to_the_lower_index():
    """With constant scores the first tokens win, in HiPrune after its anchors' crosses."""
    stage = METHODS["vtc_cls"]()
    kept = stage.select(context(stage, 5, 6, 9, values=0.5), ENCODER).keep[0]
    assert kept.tolist() == list(range(9))
    stage = METHODS["hiprune"]()
    kept = stage.select(context(stage, 5, 6, 9, values=0.5), ENCODER).keep[0]
    assert kept.tolist() == list(range(9))
    # round(25 * 0.4 / 5) = 2 anchors, 0 and 1: crosses 0, 1, 2, 6, 7; the other 5 of 10 are the lowest.
    constant = torch.zeros(1, 30)
    assert select_tokens(constant, constant, 6, 10, 1.0).keep[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def best(scores, count, allowed):
    """The `count` allowed indices with the highest scores, lower index first."""
    return sorted(allowed, key=lambda i: (-scores[i], i))[:count]


def hiprune(object_score, deep_score, width, count, alpha, exclude):
    """Section 2 of the method, one image, written as a loop; None where the released code fails."""
    tokens = len(object_score)
    anchors = best(object_score, round(count * alpha / 5), range(tokens))
    chosen = set()
    for a in anchors:
        for neighbour in (a, a - 1, a + 1, a - width, a + width):
            chosen.add(min(max(neighbour, 0), tokens - 1))
    if len(chosen) > count:
        return None
    if exclude == "exact":
        rest = best(deep_score, count - len(chosen), [i for i in range(tokens) if i not in chosen])
    else:
        lowered = [float(torch.tensor(s) - 1) if i in chosen else s for i, s in enumerate(deep_score)]
        rest = best(lowered, count - len(chosen), range(tokens))
    return sorted(chosen | set(rest))


@pytest.mark.parametrize("exclude", ["exact", "official"])
@pytest.mark.parametrize("scale", [1, 40], ids=["mean-scaled", "sum-scaled"])
@examples
@given(shape=shapes, alpha=st.floats(0, 1), levels=st.sampled_from([3, 10**6]))
def test_hiprune_is_the_plain_loop(exclude, scale, shape, alpha, levels):
    """Borders that wrap and clamp, both ways of excluding, scores with many ties and with none."""
    rows, columns, units, seed, data = shape
    tokens = rows * columns
    count = data.draw(st.integers(1, tokens))
    generator = torch.Generator().manual_seed(seed)
    middle, deep = torch.randint(0, levels, (2, units, tokens), generator=generator) / levels * scale / 16
    pairs = zip(middle.tolist(), deep.tolist(), strict=True)
    expected = [hiprune(*pair, columns, count, alpha, exclude) for pair in pairs]
    found = select_tokens(middle, deep, columns, count, alpha, exclude)
    for b, kept in enumerate(expected):
        if kept is not None:
            assert found.row(b).tolist() == kept
        else:
            assert len(found.row(b)) == count or exclude == "official"
        assert len(found.row(b)) <= count


def test_hiprune_borders_by_hand():
    """An anchor in column 0 brings the end of the row above; on the top row it brings token 0."""
    middle, deep = torch.zeros(1, 20), torch.zeros(1, 20)
    middle[0, 10] = 1.0
    assert select_tokens(middle, deep, 5, 5, 1.0).keep[0].tolist() == [5, 9, 10, 11, 15]
    middle = torch.zeros(1, 20)
    middle[0, 2] = 1.0
    assert select_tokens(middle, deep, 5, 5, 1.0).keep[0].tolist() == [0, 1, 2, 3, 7]
    middle = torch.zeros(1, 20)
    middle[0, 17] = 1.0
    assert select_tokens(middle, deep, 5, 5, 1.0).keep[0].tolist() == [12, 16, 17, 18, 19]


def test_random_depends_on_its_seed_and_place_only():
    """Other seed or place, other tokens; more units in the batch, the same tokens."""
    stage = METHODS["random"]
    kept = [stage(seed=s).select(context(stage(), 8, 8, 20, 3), ENCODER).keep for s in (0, 0, 1)]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0][0], kept[0][1])


@settings(max_examples=200)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), data=st.data())
def test_strided_grid_is_distinct_and_even(rows, columns, data):
    """Exactly `count` distinct points, ascending, and rows in use differ by at most one point."""
    count = data.draw(st.integers(1, rows * columns))
    points = strided_grid(rows, columns, count)
    assert len(points) == count
    assert all(a < b for a, b in zip(points, points[1:], strict=False))
    assert points[0] >= 0
    assert points[-1] < rows * columns
    each = [sum(p // columns == row for p in points) for row in range(rows)]
    used = [n for n in each if n]
    assert max(used) - min(used) <= 1


@examples
@given(shape=shapes)
def test_pool_weights(shape):
    """In every slot the weights are equal and sum to 1, and every token flows to its nearest kept point."""
    rows, columns, units, seed, data = shape
    count = data.draw(st.integers(1, rows * columns))
    stage = METHODS["pool"]()
    selection = stage.select(context(stage, rows, columns, count, units, seed), ENCODER)
    for keep, target, weight in zip(selection.keep, selection.merge.target, selection.merge.weight, strict=True):
        for slot in range(count):
            mine = weight[target == slot]
            assert len(mine.unique()) == 1
            assert float(mine.sum()) == pytest.approx(1, abs=1e-6)
        for token, slot in enumerate(target.tolist()):
            row, column = divmod(token, columns)
            away = [(row - p // columns) ** 2 + (column - p % columns) ** 2 for p in keep.tolist()]
            assert away.index(min(away)) == slot


@examples
@given(units=st.integers(1, 3), tokens=st.integers(1, 12), seed=st.integers(0, 10**6), data=st.data())
def test_selection_is_a_dense_matrix(units, tokens, seed, data):
    """Gathering, and merging with dropped tokens (-1), equal the product with the matrix written out."""
    count = data.draw(st.integers(1, tokens))
    generator = torch.Generator().manual_seed(seed)
    keep = torch.stack([torch.randperm(tokens, generator=generator)[:count].sort().values for _ in range(units)])
    features = torch.randn(units, tokens, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(-1, count, (units, tokens), generator=generator)
    weight = torch.rand(units, tokens, generator=generator)
    gather, merge = torch.zeros(2, units, count, tokens, dtype=torch.float64)
    for b in range(units):
        for slot in range(count):
            gather[b, slot, keep[b, slot]] = 1
        for token in range(tokens):
            if target[b, token] >= 0:
                merge[b, target[b, token], token] = weight[b, token]
    plain = Selection(keep)
    assert torch.equal(plain.apply(features), gather @ features)
    assert torch.equal(plain.apply_features(features), gather @ features)
    assert torch.equal(plain.apply(torch.arange(tokens).expand(units, -1)), keep)
    merged = Selection(keep, merge=Merge(target, weight)).apply_features(features)
    torch.testing.assert_close(merged, merge @ features)


MALFORMED = {"1-d": torch.zeros(3).long(), "float": torch.zeros(1, 2), "none": torch.zeros(1, 0).long(),
             "too-many": torch.zeros(1, 9).long()}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_selections_are_refused(name):
    """A stage that returns nonsense is refused before anything is dropped."""
    with pytest.raises(PatchError, match=r"keep must be|kept"):
        Selection(MALFORMED[name]).check(8)


def test_valid_rows_drop_their_filler():
    """`valid` marks filler at the end of a row."""
    selection = Selection(torch.tensor([[1, 4, 0], [0, 2, 3]]), valid=torch.tensor([[True, True, False], [True] * 3]))
    assert [selection.row(b).tolist() for b in (0, 1)] == [[1, 4], [0, 2, 3]]
