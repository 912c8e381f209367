"""HiPrune as a function of tensors: against a plain loop, borders and ties by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.core.signals import AttentionColumns, Encoder
from vtc.strategies.hiprune import HiPrune, select_tokens

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 10**6), st.data())
examples = settings(max_examples=40, deadline=None)


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


def test_neighbours_out_of_range_are_left_out_as_in_the_paper():
    """edges="drop": an anchor in the first row brings none for the row above, and the last token none for the next;
    rows wrap as before. The budget goes to registers instead."""
    scores = {place: torch.zeros(1, 20).index_fill_(1, torch.tensor([place]), 1.0) for place in (2, 5, 19)}
    deep = torch.arange(20.0).flip(0).div(40)[None].index_fill(1, torch.tensor([0]), 0.0)
    for place, clamped, dropped in (
        (2, [0, 1, 2, 3, 7], [1, 2, 3, 4, 7]),
        (5, [0, 4, 5, 6, 10], [0, 4, 5, 6, 10]),
        (19, [1, 2, 14, 18, 19], [1, 2, 14, 18, 19]),
    ):
        found = [select_tokens(scores[place], deep, 5, 5, 1.0, edges=e).keep[0].tolist() for e in ("clamp", "drop")]
        assert found == [clamped, dropped]
    clip = Encoder("llava", 24, True, tuple(range(24)))
    assert HiPrune(edges="drop", deep_layer=-1).needs(clip) == (AttentionColumns(8), AttentionColumns(23))


def test_ties_go_to_the_lower_index():
    """With constant scores the first tokens win, after the anchors' crosses."""
    # round(10 * 1.0 / 5) = 2 anchors, 0 and 1: crosses 0, 1, 2, 6, 7; the other 5 of 10 are the lowest.
    constant = torch.zeros(1, 30)
    assert select_tokens(constant, constant, 6, 10, 1.0).keep[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
