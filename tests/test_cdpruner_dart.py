"""CDPruner, DART and the second stage of ToDRE as functions of tensors, and the kernel of DART's pivots."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_golden import read
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import (
    Context,
    Decoder,
    Encoder,
    Features,
    FinalHidden,
    KeyNorms,
    TextEmbeddings,
    TextPivots,
    TextRelevance,
    TextToVisual,
)
from vtc.kernels.anchor import BLOCK, cosines, least_similar
from vtc.kernels.dpp import dpp_greedy
from vtc.strategies.cdpruner import CDPruner, cosine_with_words, quality
from vtc.strategies.dart import Dart, longest, select_tokens
from vtc.strategies.todre import ToDRE, drops

CLIP = Encoder("llava", 24, True, tuple(range(24)))
L32 = Decoder("llava", 32)
GOLDEN = Path(__file__).parent / "golden"
examples = settings(max_examples=60, deadline=None)


def context(signals, tokens, count):
    """signals: signal -> [B, ...]."""
    units = len(next(iter(signals.values())))
    return Context(tokens, count, None, tuple(range(units)), torch.device("cpu"), signals)


def draw(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive(similarity, quotas, taken):
    """`least_similar` as its sentence says, from cosines [P, N] of one unit."""
    kept = list(taken)
    for row, quota in zip(similarity.tolist(), quotas, strict=True):
        free = [i for i in range(len(row)) if i not in kept]
        kept += sorted(free, key=lambda i: (row[i], i))[:quota]
    return sorted(kept)


@examples
@given(units=st.integers(1, 3), n=st.integers(1, 40), p=st.integers(1, 5), seed=st.integers(0, 10**6), data=st.data())
def test_anchors_take_what_is_least_like_them(units, n, p, seed, data):
    """Against the loop, with tokens that are there twice or of length 0; each unit as if it were alone."""
    features, anchors = draw(seed, units, n, 6), draw(seed + 1, units, p, 6)
    features = features[:, torch.arange(n) % (n // 2 + 1)]
    features[:, -1] *= data.draw(st.sampled_from([0.0, 1.0]))
    before = data.draw(st.integers(0, n))
    taken = torch.stack([draw(seed + b, n).argsort()[:before] for b in range(units)])
    quotas, left = [], n - before
    for _ in range(p):
        quotas.append(data.draw(st.integers(0, left)))
        left -= quotas[-1]
    found = least_similar(features, anchors, quotas, taken)
    similarity = cosines(features, anchors)
    for b in range(units):
        assert found[b].tolist() == naive(similarity[b], quotas, taken[b].tolist())
        one = slice(b, b + 1)
        assert torch.equal(cosines(features[one], anchors[one]), similarity[one])
        assert torch.equal(least_similar(features[one], anchors[one], quotas, taken[one]), found[one])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cosines(monkeypatch, dtype):
    """As torch defines them, in float32 or float64, in blocks of any size; 0 for a vector of length 0."""
    features, anchors = draw(0, 2, 33, 20, dtype=dtype), draw(1, 2, 3, 20, dtype=dtype)
    features[:, 5], anchors[1, 2] = 0, 0
    found = cosines(features, anchors)
    exact = torch.cosine_similarity(anchors.double().unsqueeze(2), features.double().unsqueeze(1), dim=-1)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=0)
    assert bool((found[:, :, 5] == 0).all())
    assert bool((found[1, 2] == 0).all())
    monkeypatch.setitem(BLOCK, "cpu", 1)
    assert torch.equal(cosines(features, anchors), found)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cosines(features, anchors), found)


def test_equal_tokens_have_equal_cosines():
    token = draw(3, 1000)
    found = cosines(token.expand(1, 577, -1), draw(4, 1, 8, 1000))
    assert torch.equal(found, found[:, :, :1].expand_as(found))


@pytest.mark.parametrize(
    ("features", "anchors", "quotas", "taken"),
    [
        ((5, 4), (1, 2, 4), [1, 1], 0),
        ((1, 5, 4), (1, 2, 3), [1, 1], 0),
        ((2, 5, 4), (1, 2, 4), [1, 1], 0),
        ((1, 5, 4), (1, 2, 4), [1], 0),
        ((1, 5, 4), (1, 2, 4), [1, -1], 0),
        ((1, 5, 4), (1, 2, 4), [2, 2], 2),
    ],
)
def test_shapes_that_do_not_fit(features, anchors, quotas, taken):
    with pytest.raises(ValueError, match="must be|do not fit"):
        least_similar(torch.rand(features), torch.rand(anchors), quotas, torch.arange(taken).expand(1, -1))


def test_dart_counts():
    """The released rule at its own ratio, always 4 more than a whole budget; a `keep` is met as it is."""
    for budget, kept in ((192, 196), (128, 132), (64, 68), (127, 124), (7, 4)):
        stage = Dart(reduction_ratio=1 - budget / 576)
        (step,) = stage.steps(L32)
        assert (step.layer, stage.count(576, step.share)) == (2, kept)
    assert Dart().count(576, 1 - 0.7777) == 132
    assert [Dart(reduction_ratio=r).count(576, 1 - r) for r in (0.6666, 0.8888)] == [196, 68]
    assert Dart().count(2880, 1 - 0.7777) == 4 + 8 * (640 // 8)
    assert [Dart().count(n, 1 - 0.7777) for n in (1, 3, 4, 35, 36, 37)] == [1, 3, 4, 4, 12, 12]
    assert [Dart().count(576, share) for share in (0.5, 0.25, 1e-4, 1.0)] == [288, 144, 1, 576]
    assert Dart(reduction_ratio=0.0).count(583, 1.0) == 583
    assert Dart(reduction_ratio=0.5, pivot_image_token=2, pivot_text_token=0).count(101, 0.5) == 2 + 50


def test_what_dart_reads():
    assert Dart().needs(L32, 0) == (KeyNorms(1), FinalHidden(), TextPivots(1, 4))
    assert Dart(K=5, pivot_text_token=0).needs(L32, 0) == (KeyNorms(4), FinalHidden())
    assert [Dart().steps(Decoder("test", depth))[0].layer for depth in (2, 8, 28, 32)] == [1, 1, 2, 2]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl"])
def test_the_shipped_files_are_the_defaults(family):
    qwen = family.startswith("qwen")
    dart = resolve("dart", family)
    assert [(s.stage, s.positions, dart.keep) for s in dart.stages] == [(Dart(), "keep", None)]
    (first,) = resolve("cdpruner", family).stages
    assert (first.stage, first.positions) == (CDPruner(), "keep" if qwen else "compact")
    assert first.scope == ("per_tile" if family == "llava_next" else "per_image")
    assert resolve("todre", family).decoder[0].stage == ToDRE()
    assert [s.positions for s in resolve("todre", family).stages] == ["keep" if qwen else "compact", "keep"]


@examples
@given(
    n=st.integers(1, 50), text=st.integers(0, 4), units=st.integers(1, 3), seed=st.integers(0, 10**6), data=st.data()
)
def test_dart_keeps_exactly_its_count(n, text, units, seed, data):
    """Any count, also with less text than pivots or none; each image as if it were alone."""
    count = data.draw(st.integers(1, n))
    norms, hidden, words = draw(seed, units, n).abs(), draw(seed + 1, units, n, 5), draw(seed + 2, units, text, 5)
    seen = dict(zip(Dart().needs(L32, 0), (norms, hidden, words), strict=True))
    keep = Dart().select(context(seen, n, count), L32).check(n).keep
    assert keep.shape == (units, count)
    assert bool((keep[:, 1:] > keep[:, :-1]).all())
    for b in range(units):
        one = slice(b, b + 1)
        assert torch.equal(select_tokens(norms[one], hidden[one], words[one], count, 4), keep[one])
        pivots = sorted(range(n), key=lambda i: (-float(norms[b, i]), i))[:4]
        if count <= 4:
            assert keep[b].tolist() == sorted(pivots[:count])
            continue
        each, more = divmod(count - 4, 4 + text)
        quotas = [each + 1] * more + [each] * (4 + text - more)
        similarity = cosines(hidden[one], torch.cat([hidden[b, pivots], words[b]])[None])[0]
        assert keep[b].tolist() == naive(similarity, quotas, pivots)


def test_dart_without_pivots_in_the_text():
    norms, hidden = draw(0, 2, 30).abs(), draw(1, 2, 30, 5)
    stage = Dart(pivot_text_token=0)
    keep = stage.select(context({KeyNorms(1): norms, FinalHidden(): hidden}, 30, 14), L32).keep
    assert torch.equal(keep, select_tokens(norms, hidden, hidden[:, :0], 14, 4))


def test_ties_go_to_the_lower_index():
    same = torch.full((1, 20), 0.3)
    assert longest(same, 4).tolist() == [[0, 1, 2, 3]]
    assert select_tokens(same, torch.full((1, 20, 7), 0.3), torch.ones(1, 4, 7), 11, 4).tolist() == [list(range(11))]
    seen = {Features(): torch.ones(1, 20, 7), TextEmbeddings(): torch.ones(1, 2, 7)}
    assert CDPruner().select(context(seen, 20, 6), CLIP).keep.tolist() == [list(range(6))]


def test_quality():
    """0 to 1 and a little more; the units of a batch apart, or together; finite for constant relevance."""
    relevance = torch.tensor([[0.1, 0.3, 0.2], [0.5, 0.5, 0.5]])
    apart = quality(relevance)
    torch.testing.assert_close(apart, torch.tensor([[5e-6, 1 + 5e-6, 0.5 + 5e-6], [1, 1, 1]]), atol=1e-6, rtol=0)
    assert bool((apart > 0).all())
    together = quality(relevance, joint=True)
    assert torch.equal(together, quality(relevance.reshape(1, -1)).reshape(2, 3))
    assert float(together[1].min()) == float(together.max()) > float(together[0].max())
    tiny = torch.tensor([[0.25, math.nextafter(0.25, 1)]], dtype=torch.float64)
    assert quality(tiny).dtype == torch.float64
    assert bool((quality(tiny) - 1).abs().max() < 1e-6)
    assert quality(relevance.bfloat16()).dtype == torch.float32


def test_cosine_with_words():
    features, words = draw(0, 2, 9, 6), draw(1, 2, 3, 6)
    exact = torch.cosine_similarity(features, words.mean(1, keepdim=True), dim=-1)
    torch.testing.assert_close(cosine_with_words(features, words), exact)
    assert torch.equal(cosine_with_words(features.bfloat16(), words[:, :0]), torch.zeros(2, 9))


def test_what_cdpruner_reads():
    """Text only where it is asked for; a processor only for CLIP's text tower."""
    for relevance, signals in (
        ("clip", (Features(), TextRelevance())),
        ("embeddings", (Features(), TextEmbeddings())),
        ("none", (Features(),)),
    ):
        stage = resolve("cdpruner", "llava", relevance=relevance).projector.stage
        assert stage.needs(CLIP) == signals
        assert stage.needs_text is (relevance == "clip")


def test_cdpruner_is_the_process_of_its_kernel():
    """Each way to relevance, with its sign; picks do not depend on the batch, nor on dimensions running out."""
    features, cosine, words = draw(0, 3, 40, 12), draw(1, 3, 40), draw(2, 3, 5, 12)
    for stage, text, relevance in (
        (CDPruner("clip"), {TextRelevance(): cosine}, -cosine),
        (CDPruner("clip", "paper"), {TextRelevance(): cosine}, cosine),
        (CDPruner(), {TextEmbeddings(): words}, cosine_with_words(features, words)),
        (CDPruner(sign="paper"), {TextEmbeddings(): words}, cosine_with_words(features, words)),
        (CDPruner("none"), {}, torch.ones(3, 40)),
    ):
        seen = {Features(): features, **text}
        for count in (1, 10, 25, 40):
            keep = stage.select(context(seen, 40, count), CLIP).check(40).keep
            assert torch.equal(keep, dpp_greedy(features, quality(relevance), count).sort(1).values)
            last = {signal: values[-1:] for signal, values in seen.items()}
            assert torch.equal(stage.select(context(last, 40, count), CLIP).keep[0], keep[-1])
    released, paper = (CDPruner("clip", sign).select(context({**seen, TextRelevance(): cosine}, 40, 10), CLIP)
                       for sign in ("released", "paper"))  # fmt: skip
    assert not torch.equal(released.keep, paper.keep)


def test_todre_reads_one_layer_and_drops_after_it():
    for layer, depth, number in ((0.875, 32, 28), (0.875, 28, 24), (0.875, 2, 1), (20, 32, 20)):
        (step,) = ToDRE(layer=layer).steps(decoder := Decoder("test", depth))
        assert (step.layer, step.share) == (number, 1.0)
        assert ToDRE(layer=layer).needs(decoder, 0) == (TextToVisual(number - 1),)
    assert ToDRE.adaptive
    assert ToDRE().count(37, 1.0) == 37


def test_todre_is_all_or_nothing():
    shares = torch.tensor([0.05, 0.1, 0.2, torch.nan])
    selection = ToDRE().select(context({TextToVisual(27): shares}, 6, 6), L32).check(6)
    assert [selection.row(b).tolist() for b in range(4)] == [[], *[list(range(6))] * 3]
    assert drops(shares, 0.1, shares.flip(0)).tolist() == [False] * 4
    assert drops(shares[:2], 0.15, torch.zeros(2)).tolist() == [True, True]


FILES = sorted((GOLDEN / "todre_derived").glob("*.safetensors"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_todre_drops_as_derived(file):
    """attention [H, L, L] of a prompt -> both shares and the decision."""
    tensors, params = read(file)
    start, end = params["image_start"], params["image_start"] + params["num_visual"]
    attention = tensors["attention"].double().mean(0)
    text, visual = attention[end:], attention[start:end]
    share, back = text[:, start:end].sum() / text.sum(), visual[:, end:].sum() / visual.sum()
    torch.testing.assert_close(torch.stack([share, back]), tensors["alpha"])
    assert bool(drops(share, params["tau"], back)) == bool(params["drop"])
    seen = context({TextToVisual(27): share.reshape(1)}, params["num_visual"], params["num_visual"])
    kept = ToDRE(tau=params["tau"]).select(seen, L32).row(0)
    assert len(kept) == (0 if params["drop"] else params["num_visual"])


def test_wrong_knobs_are_refused():
    """One line: what was wrong and what is possible."""
    for make, message in (
        (lambda: Dart(reduction_ratio=1.0), r"reduction_ratio=1\.0 is out of range; possible"),
        (lambda: Dart(pivot_image_token=0), "pivot_image_token=0 is out of range; possible: at least 1"),
        (lambda: Dart(pivot_text_token=-1), "pivot_text_token=-1 is out of range; possible: at least 0"),
        (lambda: Dart(K=32).steps(L32), "K=32 is beyond"),
        (lambda: ToDRE(tau=1.5), r"tau=1\.5 is out of range; possible"),
        (lambda: ToDRE(layer=32).steps(L32), "layer=32 is beyond"),
        (lambda: resolve("cdpruner", "llava", relevance="text"), "relevance='text' is unknown; possible: clip, emb"),
        (lambda: resolve("cdpruner", "llava", sign="minus"), "sign='minus' is unknown; possible: released, paper"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            make()
        assert "\n" not in str(error.value)
