"""Merging into contextual tokens: against a plain loop, and what must hold for every selection that it gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc.kernels.merge as kernel
from vtc.core.selection import Merge, Selection
from vtc.kernels.merge import contextual_merge, merged_slots

examples = settings(max_examples=60, deadline=None)


def metric_of(units, tokens, seed, kind="normal", width=6):
    """Random rows; "axes": signed unit vectors, so that equal similarities are exactly equal; "gaps": some are zero."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "axes":
        axis = torch.randint(0, 3, (units, tokens), generator=generator)
        sign = torch.randint(0, 2, (units, tokens, 1), generator=generator) * 2.0 - 1
        return torch.eye(3)[axis] * sign
    metric = torch.randn(units, tokens, width, generator=generator, dtype=torch.float64)
    if kind == "gaps":
        metric *= torch.randint(0, 2, (units, tokens, 1), generator=generator)
    return metric


def chosen_of(units, tokens, dominant, seed):
    """Random distinct dominant tokens [units, dominant], ascending."""
    generator = torch.Generator().manual_seed(seed + 1)
    rows = [torch.randperm(tokens, generator=generator)[:dominant].sort().values for _ in range(units)]
    return torch.stack(rows)


def plain_loop(metric, dominant, contextual):
    """Targets and {token: target's number} of one unit, written from the definition."""
    rest = [i for i in range(len(metric)) if i not in dominant]
    if contextual == 0:
        return [], {}
    step = max(1, len(rest) // contextual)
    targets = rest[::step][:contextual]
    joined = {}
    for i in rest:
        if i not in targets:
            cosines = []
            for t in targets:
                lengths = float(metric[i].norm() * metric[t].norm())
                cosines.append(float(metric[i] @ metric[t]) / lengths if lengths else 0.0)
            joined[i] = cosines.index(max(cosines))
    return targets, joined


@st.composite
def cases(draw):
    """(metric [B, N, e], dominant [B, d], C): every split that is possible, d = 0, C = 0 and d + C = N included."""
    units, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 24))
    dominant = draw(st.integers(0, tokens))
    contextual = draw(st.integers(0, tokens - dominant))
    seed, kind = draw(st.integers(0, 10**6)), draw(st.sampled_from(["normal", "axes", "gaps"]))
    return metric_of(units, tokens, seed, kind), chosen_of(units, tokens, dominant, seed), contextual


@examples
@given(case=cases(), block=st.sampled_from([1, 5, 2**22]))
def test_groups_are_the_plain_loop(case, block):
    """Targets, groups, ties and weights, whatever is computed at a time; each unit as if it were alone."""
    metric, dominant, contextual = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "BLOCK", block)
        groups = contextual_merge(metric, dominant, contextual)
    for b in range(len(metric)):
        targets, joined = plain_loop(metric[b], dominant[b].tolist(), contextual)
        assert groups.targets[b].tolist() == targets
        group, weight = [-1] * metric.shape[1], [0.0] * metric.shape[1]
        sizes = [list(joined.values()).count(c) for c in range(contextual)]
        for number, t in enumerate(targets):
            group[t], weight[t] = number, 1.0
        for i, number in joined.items():
            group[i], weight[i] = number, 1 / sizes[number]
        assert groups.group[b].tolist() == group
        assert groups.weight[b].tolist() == pytest.approx(weight)
        alone = contextual_merge(metric[b : b + 1], dominant[b : b + 1], contextual)
        assert all(torch.equal(one[0], many[b]) for one, many in zip(alone, groups, strict=True))


@examples
@given(case=cases(), cls=st.booleans())
def test_slots_give_the_merged_sequence(case, cls):
    """keep ascends and is distinct, order is a permutation, and the merged features in that order are [CLS], the
    dominant tokens as they were, then each target plus the mean of its group."""
    metric, dominant, contextual = case
    units, tokens = metric.shape[:2]
    count = dominant.shape[1] + contextual + cls
    if not 0 < count <= tokens:
        return
    slots = merged_slots(dominant, contextual_merge(metric, dominant, contextual), cls)
    assert slots.keep.shape == slots.order.shape == (units, count)
    assert slots.target.shape == slots.weight.shape == (units, tokens + cls)
    assert bool((slots.keep[:, 1:] > slots.keep[:, :-1]).all())
    assert torch.equal(slots.order.sort(1).values, torch.arange(count).expand(units, -1))
    features = torch.randn(units, tokens + cls, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    merged = Selection(slots.keep, merge=Merge(slots.target, slots.weight)).apply_features(features)
    for b in range(units):
        patches = features[b, cls:]
        targets, joined = plain_loop(metric[b], dominant[b].tolist(), contextual)
        rows, places = [features[b, 0]] * cls, dominant[b].tolist() + targets
        if cls:
            places = [min(set(range(tokens)) - set(places)), *places]
        rows += list(patches[dominant[b]])
        for number, t in enumerate(targets):
            group = [patches[i] for i, to in joined.items() if to == number]
            rows.append(patches[t] + (torch.stack(group).mean(0) if group else 0))
        assert slots.keep[b][slots.order[b]].tolist() == places
        torch.testing.assert_close(merged[b][slots.order[b]], torch.stack(rows), rtol=1e-6, atol=1e-6)


def test_keeping_everything_changes_nothing():
    """All tokens dominant: the identity, exactly."""
    metric, every = metric_of(2, 7, 0), torch.arange(7).expand(2, -1)
    slots = merged_slots(every, contextual_merge(metric, every, 0))
    features = torch.randn(2, 7, 3)
    assert torch.equal(slots.keep, every)
    assert torch.equal(slots.order, every)
    assert torch.equal(
        Selection(slots.keep, merge=Merge(slots.target, slots.weight)).apply_features(features), features
    )


def test_zero_lengths_stay_finite():
    """Rows of zeros, as all rows or as a target, join the first target and bring no NaN."""
    groups = contextual_merge(torch.zeros(1, 9, 4), torch.tensor([[2, 5]]), 3)
    assert groups.targets.tolist() == [[0, 3, 6]]
    assert groups.group.tolist() == [[0, 0, -1, 1, 0, -1, 2, 0, 0]]
    torch.testing.assert_close(groups.weight, torch.tensor([[1, 0.25, 0, 1, 0.25, 0, 1, 0.25, 0.25]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype):
    """Half-precision metrics give what their float32 copies give, inside autocast too."""
    metric, dominant = metric_of(2, 60, 3).to(dtype), chosen_of(2, 60, 20, 3)
    expected = contextual_merge(metric.float(), dominant, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [contextual_merge(metric, dominant, 6), contextual_merge(metric.float(), dominant, 6)]
    for groups in found:
        assert all(torch.equal(a, b) for a, b in zip(groups, expected, strict=True))
        assert groups.weight.dtype == torch.float32


def test_wrong_shapes_are_refused():
    """Messages name what was given."""
    metric = torch.zeros(1, 5, 2)
    with pytest.raises(ValueError, match=r"contextual=4 is outside 0\.\.3"):
        contextual_merge(metric, torch.tensor([[0, 1]]), 4)
    with pytest.raises(ValueError, match="contextual=-1"):
        contextual_merge(metric, torch.tensor([[0, 1]]), -1)
    for wrong in (metric[0], torch.zeros(2, 5, 2)):
        with pytest.raises(ValueError, match=r"metric must be \[B, N, e\]"):
            contextual_merge(wrong, torch.tensor([[0, 1]]), 1)
