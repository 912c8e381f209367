"""Where images lie and how prompts are packed, against lists made by hand; reading nothing against reading."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc
from tests.helpers import generate, inputs_of, model_of, split
from vtc.core.errors import PatchError, UnsupportedError
from vtc.engine.placement import Batch, place
from vtc.engine.prefill import pack
from vtc.engine.select import Kept

pytestmark = pytest.mark.product

IMAGE = 9


@st.composite
def batches(draw):
    """Rows of ids (None is padding), the tokens of each image in order, what stays of each image (maybe reordered)."""
    side = draw(st.sampled_from(("left", "right", "both", "none")))
    rows, totals, kept = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        row, mine = [1] * draw(st.integers(1, 3)), []
        for _ in range(draw(st.integers(0, 2))):
            n = draw(st.integers(1, 5))
            places = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
            ordered = draw(st.booleans())
            mine.append((places if ordered else sorted(places), ordered))
            totals.append(n)
            row += [IMAGE] * n + [2] * draw(st.integers(1, 3))
        rows.append(row)
        kept.append(mine)
    length = max(map(len, rows)) + (0 if side == "none" else draw(st.integers(0, 2)))
    for row in rows:
        missing = length - len(row)
        if side == "none":
            row += [3] * missing
            missing = 0
        before = {"left": missing, "both": draw(st.integers(0, missing))}.get(side, 0)
        row[:0], row[len(row) :] = [None] * before, [None] * (missing - before)
    return rows, totals, kept


def by_hand(row, totals, kept):
    """Places that stay, in order; each image's tokens in its own order at its kept places in ascending order."""
    out, images, c = [], iter(zip(totals, kept, strict=True)), 0
    while c < len(row):
        if row[c] == IMAGE:
            n, (places, _) = next(images)
            out += [c + p for p in places]
            c += n
            continue
        out += [c] if row[c] is not None else []
        c += 1
    return out


@settings(max_examples=200)
@given(batches(), st.booleans(), st.booleans())
def test_packing_is_the_list_made_by_hand(batch, contiguous, from_end):
    """Kept text and image tokens of each prompt; filler repeats a real token. Padding behind the tokens stays as it is
    where columns count from the end, or some row has padding before them too; a batch that is padded on the right only
    loses what all its rows have too much of. A batch whose tensors are views of others is packed alike."""
    rows, totals, kept = batch
    if not totals:
        return
    ids = torch.tensor([[0 if x is None else x for x in row] for row in rows])
    real = torch.tensor([[x is not None for x in row] for row in rows])
    ids, real = (x if contiguous else x.t().contiguous().t() for x in (ids, real))
    where = Batch(ids == IMAGE, real, ids)
    placement = place(where, totals, read=True, from_end=from_end)
    given_kept = [[Kept(torch.tensor(p), None, o) for p, o in mine] for mine in kept]
    packing = pack(where, placement, given_kept)
    cursor = iter(totals)
    expected = [by_hand(row, [next(cursor) for _ in mine], mine) for row, mine in zip(rows, kept, strict=True)]
    assert packing.lengths == [len(x) for x in expected]
    behind, before = {}, {}
    for b, want in enumerate(expected):
        valid = torch.ones_like(packing.index[b], dtype=torch.bool) if packing.valid is None else packing.valid[b]
        assert packing.index[b][valid].tolist() == want
        assert set(packing.index[b][~valid].tolist()) <= set(want)
        first, stop = valid.tolist().index(True), packing.ends[b]
        assert valid.tolist() == [first <= column < stop for column in range(len(valid))]
        behind[b] = len(valid) - stop, len(rows[b]) - max(c for c, x in enumerate(rows[b]) if x is not None) - 1
        before[b] = first
    if from_end or any(row[0] is None for row in rows) or all(row[-1] is not None for row in rows):
        assert all(found == given for found, given in behind.values())
        assert min(before.values()) == 0
    else:
        assert set(before.values()) == {0}
        assert min(found for found, _ in behind.values()) == min(given for _, given in behind.values())


@settings(max_examples=50)
@given(batches())
def test_one_prompt_needs_no_reading(batch):
    """From shapes alone: the same places as read from the ids."""
    rows, totals, kept = batch
    rows, kept = [[x for x in rows[0] if x is not None]], kept[:1]
    totals = totals[: len(kept[0])]
    if not totals:
        return
    ids = torch.tensor(rows)
    unread, read = Batch(ids == IMAGE, None, ids), Batch(ids == IMAGE, None, ids)
    found, expected = place(unread, totals, read=False), place(read, totals, read=True)
    assert "host" not in vars(unread)
    assert (found.requests, found.source, found.lengths) == (expected.requests, expected.source, expected.lengths)
    assert [x.tolist() for x in found.places[0]] == [x.tolist() for x in expected.places[0]]


def test_refusals():
    """Placeholders that are not those of the images, and images that the mask hides."""
    ids = torch.tensor([[1, IMAGE, IMAGE, 2], [1, IMAGE, 2, 2]])
    with pytest.raises(PatchError, match="3 image tokens, the encoder gave 4"):
        place(Batch(ids == IMAGE, None, ids), [2, 2], read=True)
    with pytest.raises(UnsupportedError, match="hides image tokens"):
        place(Batch(ids == IMAGE, ids != IMAGE, ids), [2, 1], read=True)


@pytest.mark.parametrize("strategy", ["hiprune", "visionzip", "pool", "random", "fastv", "visiondrop"])
@pytest.mark.parametrize("case", vtc.families())
def test_with_and_without_a_mask(case, strategy):
    """A mask of ones changes nothing, though it is read and a missing one is not."""
    model, single = model_of(case), split(inputs_of(case))[1]
    bare = {k: v for k, v in single.items() if k != "attention_mask"}
    with vtc.patched(model, strategy):
        masked = generate(model, single, 4, use_cache=True)
        with torch.no_grad():
            logits = [model(**given).logits for given in (single, bare)]
        kept = [image.kept.tolist() for image in vtc.report(model).images]
        plain = generate(model, bare, 4, use_cache=True)
        assert [image.kept.tolist() for image in vtc.report(model).images] == kept
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-9)
    assert torch.equal(masked.tokens, plain.tokens)
    torch.testing.assert_close(plain.logits, masked.logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", ["qwen2_vl", "qwen2_5_vl"])
def test_missing_sizes_are_the_models_own_error(case):
    """A patched model says what the stock model says."""
    model, single = model_of(case), split(inputs_of(case))[0]
    del single["image_grid_thw"]
    errors = []
    for strategy in (None, "hiprune"):
        if strategy:
            vtc.patch(model, strategy)
        try:
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever transformers raises
                model(**single)
            errors.append((caught.type, str(caught.value)))
        finally:
            vtc.unpatch(model)
    assert errors[0] == errors[1]
