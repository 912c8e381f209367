"""Every method as a function of tensors: counts, order, ties; selections applied."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.core.errors import PatchError
from vtc.core.selection import Merge, Selection
from vtc.core.signals import (
    AttentionColumns,
    ClipPatches,
    ClipWords,
    ClsAttention,
    Context,
    Decoder,
    DecoderAttention,
    DecoderKeys,
    Encoder,
    EncoderFeatures,
    EncoderKeys,
    Features,
    FinalHidden,
    Hidden,
    ImageAttention,
    Importance,
    KeyNorms,
    PatchAttention,
    TextEmbeddings,
    TextPivots,
    TextRelevance,
    Transition,
    Unprojected,
    ValueNorms,
)
from vtc.kernels.grid import strided_grid
from vtc.strategies import METHODS

ENCODER = Encoder("test", depth=8, has_cls=True, global_layers=tuple(range(8)))
NO_CLS = Encoder("test", depth=8, has_cls=False, global_layers=tuple(range(8)))
DECODER = Decoder("test", 32)
ROWS = AttentionColumns | ClsAttention | PatchAttention | Transition | DecoderAttention | KeyNorms
ROWS |= TextRelevance | Importance | ImageAttention | ValueNorms  # [B, N]
WIDE = Features | ClipPatches | EncoderFeatures | EncoderKeys | DecoderKeys | FinalHidden | Hidden  # [B, N, D]
TEXT = TextEmbeddings | ClipWords | TextPivots  # [B, m, D]
# Those inside the encoder are in test_encoder_methods.py, those that change attention in test_attention_stage.py, those
# that compare frames, and keep images whole, in test_video_methods.py.
OUTSIDE = [name for name in METHODS if METHODS[name].site in ("projector", "decoder")]
OUTSIDE = [name for name in OUTSIDE if not getattr(METHODS[name], "clips", False)]
methods = pytest.mark.parametrize("method", [name for name in OUTSIDE if not METHODS[name].adaptive])
encoders = pytest.mark.parametrize("encoder", [ENCODER, NO_CLS], ids=["cls", "no-cls"])
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6), st.data())
examples = settings(max_examples=40, deadline=None)


def site_of(stage, encoder=ENCODER):
    """What a stage's `needs` and `select` are told about: the encoder, or the language model."""
    return encoder if stage.site == "projector" else DECODER


def steps_of(stage):
    """How many drops a stage makes."""
    return len(stage.steps(DECODER)) if stage.site == "decoder" else 1


def context(stage, rows, columns, count, units=1, seed=0, values=None, step=0, encoder=ENCODER):
    """A context with random (or constant) signals of the right shape and scale."""
    generator = torch.Generator().manual_seed(seed)
    tokens = rows * columns
    inside = stage.site == "decoder"
    signals = {}
    for signal in stage.needs(DECODER, step) if inside else stage.needs(encoder):
        if signal == Unprojected():
            continue
        assert isinstance(signal, ROWS | WIDE | TEXT)
        shape = (units, 4 if isinstance(signal, TEXT) else tokens, *((4,) if isinstance(signal, WIDE | TEXT) else ()))
        signals[signal] = torch.rand(shape, generator=generator) if values is None else torch.full(shape, values)
    grid = None if inside else (rows, columns)
    return Context(tokens, count, grid, tuple(range(units)), torch.device("cpu"), signals, step)


def check(selection, tokens, count, units):
    """Exactly `count` ascending, distinct, possible indices in each unit; an order is a permutation of the slots."""
    assert selection.check(tokens) is selection
    assert selection.keep.shape == (units, count)
    assert selection.valid is None or bool(selection.valid.all())
    assert bool((selection.keep[:, 1:] > selection.keep[:, :-1]).all())
    assert int(selection.keep.min()) >= 0
    assert int(selection.keep.max()) < tokens
    if selection.order is not None:
        assert torch.equal(selection.order.sort(1).values, torch.arange(count).expand(units, -1))


def check_merge(selection, tokens, encoder):
    """Targets are slots or -1, weights lie in (0, 1] where something flows and every slot gets something."""
    merge, (units, count) = selection.merge, selection.keep.shape
    extra = int(merge.unprojected and encoder.has_cls)
    assert merge.target.shape == merge.weight.shape == (units, tokens + extra)
    assert int(merge.target.max()) < count
    assert int(merge.target.min()) >= -1
    flows = merge.target >= 0
    assert bool((merge.weight[flows] > 0).all())
    assert bool((merge.weight <= 1).all())
    more = merge.target[:, :0] if merge.extra is None else merge.extra.target
    for target, others in zip(merge.target, more, strict=True):
        assert set(range(count)) <= {*target.tolist(), *others.tolist()}


@methods
@encoders
@examples
@given(shape=shapes)
def test_exactly_count_sorted_and_unique(encoder, method, shape):
    """For random rasters, budgets, scores and steps; the same again for the same input; each unit as if it were
    alone."""
    rows, columns, units, seed, data = shape
    tokens = rows * columns
    count = data.draw(st.integers(1, tokens))
    stage = METHODS[method]()
    step, site = data.draw(st.integers(0, steps_of(stage) - 1)), site_of(stage, encoder)
    given_context = context(stage, rows, columns, count, units, seed, step=step, encoder=encoder)
    selection = stage.select(given_context, site)
    check(selection, tokens, count, units)
    assert torch.equal(stage.select(given_context, site).keep, selection.keep)
    last = {signal: values[-1:] for signal, values in given_context.signals.items()}
    single = Context(tokens, count, given_context.grid, (units - 1,), torch.device("cpu"), last, step)
    alone = stage.select(single, site)
    assert torch.equal(alone.keep[0], selection.keep[-1])
    if selection.order is not None:
        assert torch.equal(alone.order[0], selection.order[-1])
    if selection.merge is not None:
        check_merge(selection, tokens, encoder)
        assert torch.equal(alone.merge.target[0], selection.merge.target[-1])
        torch.testing.assert_close(alone.merge.weight[0], selection.merge.weight[-1])


@methods
@encoders
@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 7), (7, 1), (6, 6), (3, 8)])
def test_one_and_all(encoder, method, rows, columns):
    """k=1 keeps one token, k=N every token as it is and where it is, at every step."""
    stage, tokens = METHODS[method](), rows * columns
    site = site_of(stage, encoder)
    for step in range(steps_of(stage)):
        one = stage.select(context(stage, rows, columns, 1, 2, step=step, encoder=encoder), site)
        check(one, tokens, 1, 2)
        every = stage.select(context(stage, rows, columns, tokens, 2, step=step, encoder=encoder), site)
        assert torch.equal(every.keep, torch.arange(tokens).expand(2, -1))
        assert every.order is None or torch.equal(every.order, every.keep)
        if every.merge is not None:
            first = int(every.merge.unprojected and encoder.has_cls)
            features = torch.randn(2, first + tokens, 3)
            torch.testing.assert_close(every.apply_features(features), features[:, first:])


@methods
def test_every_row_matters(method):
    """A signal that is asked for is used: with another value of any of them, another selection."""
    stage = METHODS[method]()
    for step in range(steps_of(stage)):
        # A set that is half of everything no longer depends on where it began.
        count = 12 if method == "todre_projector" else 100
        seen, new = (context(stage, 16, 16, count, seed=seed, step=step) for seed in (0, 1))
        before = stage.select(seen, site_of(stage))
        for signal in seen.signals:
            if method == "holov" and signal == Features():
                continue  # brings both terms of a score to one mean: only where cosines do not vary, see its own test
            changed = {**seen.signals, signal: new.signals[signal]}
            other = Context(256, count, seen.grid, (0,), seen.device, changed, step)
            after = stage.select(other, site_of(stage))
            same = torch.equal(before.keep, after.keep)
            assert not same or before.merge is not None and not torch.equal(before.merge.target, after.merge.target)


def test_ties_go_to_the_lower_index():
    """With constant scores the first tokens win."""
    stage = METHODS["vtc_cls"]()
    kept = stage.select(context(stage, 5, 6, 9, values=0.5), ENCODER).keep[0]
    assert kept.tolist() == list(range(9))
    stage = METHODS["hiprune"]()
    kept = stage.select(context(stage, 5, 6, 9, values=0.5), ENCODER).keep[0]
    assert kept.tolist() == list(range(9))
    for method in ("fastv", "pyramiddrop", "transprune", "visiondrop"):
        stage = METHODS[method]()
        for step in range(steps_of(stage)):
            kept = stage.select(context(stage, 5, 6, 9, values=0.5, step=step), DECODER)
            # Of VisionDrop's 9 one is contextual: the first of those that are not dominant.
            assert kept.keep[0].tolist() == list(range(9))


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
