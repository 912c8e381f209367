"""DivPrune, VisionZip, VisPruner and ToDRE's first stage: plain loops, their published counts, and their edges."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc.kernels.bipartite as kernel
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import (
    AttentionColumns,
    ClsAttention,
    Context,
    Encoder,
    EncoderFeatures,
    EncoderKeys,
    Features,
    Unprojected,
)
from vtc.kernels.bipartite import bipartite_prune
from vtc.strategies.divprune import DivPrune
from vtc.strategies.todre_projector import ToDREProjector, selection_order
from vtc.strategies.visiondrop_projector import VisionDropProjector
from vtc.strategies.visionzip import VisionZip
from vtc.strategies.vispruner import VisPruner, select_tokens

CLIP = Encoder("llava", 24, True, tuple(range(24)), tokens=576)
NEXT = Encoder("llava_next", 24, True, tuple(range(24)), tiled=True)
QWEN = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31))
examples = settings(max_examples=60, deadline=None)


def features_of(units, tokens, seed, kind="normal", width=6):
    """Random rows; "axes": signed unit vectors, so that equal similarities are exactly equal; "copies": few different
    rows; "gaps": some are zero."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "axes":
        axis = torch.randint(0, 3, (units, tokens), generator=generator)
        return torch.eye(3)[axis] * (torch.randint(0, 2, (units, tokens, 1), generator=generator) * 2.0 - 1)
    features = torch.randn(units, tokens, width, generator=generator, dtype=torch.float64)
    if kind == "copies":
        return features[:, torch.randint(0, min(4, tokens), (tokens,), generator=generator)]
    if kind == "gaps":
        features *= torch.randint(0, 2, (units, tokens, 1), generator=generator)
    return features


def scores_of(units, tokens, seed):
    return torch.rand(units, tokens, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def cosines(features):
    """[n, n] of one unit, as nested lists; equal to 9 digits is equal."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return [[round(float(c), 9) for c in row] for row in unit @ unit.T]


def thinned(features, keep, per_round=8):
    """The rounds of one unit, written from the definition."""
    cosine, left = cosines(features), list(range(len(features)))
    while keep and len(left) > keep:
        even, odd = left[::2], left[1::2]
        ranked = sorted(even, key=lambda i: -max(cosine[i][j] for j in odd))
        left = ranked[min(per_round, len(left) - keep) :] + odd
    return left[:keep]


def context(stage, encoder, count, values, grid=None):
    """values: the tensors of what the stage asks for, in that order."""
    needs = [signal for signal in stage.needs(encoder) if signal != Unprojected()]
    units, tokens = values[0].shape[:2]
    signals = dict(zip(needs, values, strict=True))
    return Context(tokens, count, grid, tuple(range(units)), torch.device("cpu"), signals)


@examples
@given(
    units=st.integers(1, 3), tokens=st.integers(1, 60), per_round=st.integers(1, 9), seed=st.integers(0, 10**6),
    kind=st.sampled_from(["normal", "axes", "copies", "gaps"]), held=st.sampled_from([1, 2**28]), data=st.data(),
)  # fmt: skip
def test_rounds_are_the_plain_loop(units, tokens, per_round, seed, kind, held, data):
    """The list in its order, whatever is computed at a time; odd lists, more to drop than candidates, ties."""
    keep = data.draw(st.integers(0, tokens))
    features = features_of(units, tokens, seed, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "HELD", held)
        patch.setattr(kernel, "BLOCK", held)
        left = bipartite_prune(features, keep, per_round)
    assert left.shape == (units, keep)
    assert left.tolist() == [thinned(unit, keep, per_round) for unit in features]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounds_do_not_depend_on_precision(dtype):
    """Any dtype gives what its float64 copy gives, inside autocast too, and a unit what it gives alone."""
    features = features_of(3, 101, 5, width=32).to(dtype)
    expected = bipartite_prune(features.double(), 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bipartite_prune(features, 20), expected)
    for b in range(3):
        assert torch.equal(bipartite_prune(features[b : b + 1], 20)[0], expected[b])


def test_rounds_of_equal_tokens():
    """All similarities equal: of the even places the first go, and the odd places are the next list's end."""
    left = bipartite_prune(torch.ones(1, 10, 3), 5, per_round=2)
    # 0..9 -> 4 6 8 1 3 5 7 9 -> 3 7 6 1 5 9 -> the first of 3 6 5 goes
    assert left.tolist() == [[6, 5, 7, 1, 9]]


def test_rounds_refuse_what_does_not_fit():
    features = torch.ones(1, 4, 2)
    for wrong, message in (
        ((features[0], 2), r"\[B, n, D\], got shape \(4, 2\)"),
        ((features, 5), "keep=5 is outside 0..4"),
        ((features, 2, 0), "per_round=0"),
    ):
        with pytest.raises(ValueError, match=message):
            bipartite_prune(*wrong)


@examples
@given(
    tokens=st.integers(1, 50), ratio=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), seed=st.integers(0, 10**6),
    data=st.data(),
)  # fmt: skip
def test_vispruner_by_hand(tokens, ratio, seed, data):
    count = data.draw(st.integers(1, tokens))
    scores, features = scores_of(2, tokens, seed), features_of(2, tokens, seed)
    keep = select_tokens(scores, features, count, ratio).keep
    for b in range(2):
        ranked = sorted(range(tokens), key=lambda i: (-float(scores[b, i]), i))
        important, rest = ranked[: int(count * ratio)], ranked[int(count * ratio) :]
        left = thinned(features[b, rest], count - len(important))
        assert keep[b].tolist() == sorted(important + [rest[i] for i in left])


def test_vispruner_reads_the_layer_that_the_projector_receives():
    stage = resolve("vispruner", "llava").projector.stage
    assert stage == VisPruner()
    assert stage.needs(CLIP) == (ClsAttention(22), EncoderFeatures())
    stage = resolve("vispruner", "qwen2_5_vl").projector.stage
    assert stage.needs(QWEN) == (AttentionColumns(31, "mean"), EncoderFeatures())
    with pytest.raises(ConfigError, match=r"important_ratio=1\.5 is out of range"):
        resolve("vispruner", "llava", important_ratio=1.5)


@pytest.mark.parametrize(("count", "contextual"), [(64, 10), (128, 20), (192, 30), (32, 5), (1, 0)])
def test_visionzip_splits_its_budget_as_published(count, contextual):
    """[CLS] and dominant patches, then contextual tokens in the sequence's last places."""
    scores, keys = scores_of(1, 576, 0), features_of(1, 576, 0)
    stage = resolve("visionzip", "llava").projector.stage
    assert stage == VisionZip()
    assert stage.needs(CLIP) == (ClsAttention(22), EncoderKeys(22), Unprojected())
    selection = stage.select(context(stage, CLIP, count, (scores, keys)), CLIP)
    assert selection.merge.unprojected
    assert selection.keep.shape == (1, count)
    kept = selection.keep[0][selection.order[0]]
    best = scores[0].topk(count - contextual - 1).indices.sort().values
    assert torch.equal(kept[1 : count - contextual], best)
    rest = [i for i in range(576) if i not in set(best.tolist())]
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    assert kept[count - contextual :].tolist() == targets


def test_visionzip_is_visiondrops_first_stage():
    """With an equal share of contextual tokens the two select and merge alike; without [CLS] by attention received."""
    scores, keys = scores_of(2, 90, 1), features_of(2, 90, 1)
    for encoder in (CLIP, QWEN):
        zipped, dropped = VisionZip(0.2, -1), VisionDropProjector(0.2, -1)
        assert zipped.needs(encoder) == dropped.needs(encoder)
        one = zipped.select(context(zipped, encoder, 30, (scores, keys)), encoder)
        other = dropped.select(context(dropped, encoder, 30, (scores, keys)), encoder)
        assert torch.equal(one.keep, other.keep)
        assert torch.equal(one.order, other.order)
        assert torch.equal(one.merge.target, other.merge.target)
    assert VisionZip().needs(QWEN)[0] == AttentionColumns(30, "mean")


def furthest(features, count, first=None):
    """Greedy max-min of one unit, the minimum taken anew over all that are chosen."""
    cosine = cosines(features)
    distance = [[1 - c for c in row] for row in cosine]
    others = range(len(features))
    if first is None:
        nearest = [min((distance[i][j] for j in others if j != i), default=0) for i in others]
        first = nearest.index(max(nearest))
    chosen = [first]
    while len(chosen) < count:
        left = [j for j in others if j not in chosen]
        chosen.append(max(left, key=lambda j: (min(distance[s][j] for s in chosen), -j)))
    return chosen


def least_alike(features, count, first):
    """Greedy max-sum of one unit."""
    cosine, chosen = cosines(features), [first]
    while len(chosen) < count:
        left = [j for j in range(len(features)) if j not in chosen]
        chosen.append(min(left, key=lambda j: (sum(cosine[s][j] for s in chosen), j)))
    return chosen


@examples
@given(tokens=st.integers(1, 40), seed=st.integers(0, 10**6), data=st.data())
def test_divprune_by_hand(tokens, seed, data):
    """Also where several tiles compete and the tokens have no grid."""
    count, stage = data.draw(st.integers(1, tokens)), DivPrune()
    features = features_of(2, tokens, seed)
    keep = stage.select(context(stage, NEXT, count, (features,)), NEXT).keep
    assert keep.tolist() == [sorted(furthest(unit, count)) for unit in features]


def test_divprune_never_keeps_a_token_twice():
    """Where all features are equal the released code repeats tokens."""
    stage = DivPrune()
    keep = stage.select(context(stage, CLIP, 5, (torch.ones(1, 9, 4),)), CLIP).keep[0]
    assert len(set(keep.tolist())) == 5
    assert keep.tolist() == sorted(keep.tolist())


@pytest.mark.parametrize(
    ("keep", "tokens", "kept"), [(0.098, 576, 56), (0.1, 729, 73), (0.5, 145, 72), (0.5, 147, 74), (0.098, 2880, 282)]
)
def test_divprune_rounds_to_nearest_with_halves_to_even(keep, tokens, kept):
    """Over all tiles of an image together, also on LLaVA-NeXT."""
    for family in ("llava", "llava_next", "qwen2_5_vl"):
        budget = resolve("divprune", family, keep=keep).allocate().projector
        assert budget.quotas([[tokens]]) == [[kept]]
        assert budget.quotas([[tokens - 40, 40]]) == [[kept]]


@pytest.mark.parametrize(
    ("strategy", "published"), [("visionzip", (64, 128, 192)), ("vispruner", (128, 64, 32)), ("divprune", (56,))]
)
def test_defaults_are_published_counts(strategy, published):
    """576 tokens of LLaVA-1.5; on LLaVA-NeXT each of five tiles, but DivPrune's tiles compete."""
    config, tiles = resolve(strategy, "llava"), resolve(strategy, "llava_next")
    assert config.allocate().projector.count(576) == published[0]
    assert config.projector.positions == "compact"
    each = [282] if strategy == "divprune" else [published[0]] * 5
    assert tiles.allocate().projector.quotas([[576] * 5]) == [each]
    for family in ("qwen2_vl", "qwen2_5_vl"):
        assert resolve(strategy, family).projector.positions == "keep"


@pytest.mark.parametrize(("strategy", "kept"), [(s, n) for s in ("visionzip", "vispruner") for n in (192, 128, 64, 32)])
def test_published_shares_give_published_counts(strategy, kept):
    share = {192: 0.3333, 128: 0.2222, 64: 0.1111, 32: 0.0556}[kept]
    assert resolve(strategy, "llava", keep=share).allocate().projector.count(576) == kept


@examples
@given(tokens=st.integers(1, 40), objective=st.sampled_from(["sum", "max"]), seed=st.integers(0, 10**6), data=st.data())
def test_todre_by_hand(tokens, objective, seed, data):
    """The first token by attention among the candidates, the others by the objective, in the order of choice."""
    count, candidates = data.draw(st.integers(1, tokens)), data.draw(st.none() | st.integers(1, tokens))
    scores, features = scores_of(2, tokens, seed), features_of(2, tokens, seed)
    order = selection_order(scores, features, count, objective, candidates)
    grown = {"sum": least_alike, "max": furthest}[objective]
    for b in range(2):
        first = int(scores[b, :candidates].argmax())
        assert order[b].tolist() == grown(features[b], count, first)


def test_todre_takes_the_last_layer_and_restores_the_order():
    stage = ToDREProjector()
    assert stage.needs(CLIP) == (ClsAttention(23), Features())
    assert stage.needs(QWEN) == (ClsAttention(31), Features())
    scores, features = scores_of(2, 70, 3), features_of(2, 70, 3)
    for objective in ("sum", "max"):
        stage = ToDREProjector(objective=objective)
        keep = stage.select(context(stage, CLIP, 9, (scores, features), (7, 10)), CLIP).keep
        assert torch.equal(keep, selection_order(scores, features, 9, objective).sort(dim=1).values)


def test_todre_begins_in_the_thumbnail_where_tiles_compete():
    """Without a grid the first token is one of the thumbnail's; a tile by itself begins anywhere."""
    stage, features = ToDREProjector(), torch.eye(12)[None]
    scores = torch.arange(12.0)[None]
    encoder = SimpleNamespace(layer=NEXT.layer, thumbnail=5)
    for grid, first in ((None, 4), ((3, 4), 11)):
        keep = stage.select(context(stage, encoder, 1, (scores, features), grid), encoder).keep
        assert keep.tolist() == [[first]]


def test_todre_ties_go_to_the_lower_index():
    order = selection_order(torch.ones(1, 6), torch.ones(1, 6, 3), 4)
    assert order.tolist() == [[0, 1, 2, 3]]
