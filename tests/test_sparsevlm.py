"""SparseVLM's parts: raters, clusters around density peaks, and how a budget divides into plain and merged tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc
from tests.helpers import forward, inputs_of, kept_of, model_of, patched
from tests.helpers import split as prompts_of
from vtc.core.errors import ConfigError
from vtc.core.signals import Context, Decoder, DecoderAttention, Hidden, UnturnedAttention
from vtc.kernels.density_peaks import density_peaks
from vtc.kernels.raters import rater_scores, raters
from vtc.strategies.sparsevlm import LISTS, SparseVLM, cluster_count, released_shares, split

L32 = Decoder("llava", 32)
LEFT = {192: (309, 204, 113), 128: (312, 117, 39), 96: (249, 55, 27), 64: (82, 32, 18)}


def plain_peaks(x, clusters):
    """The clustering written out, token by token."""
    n = len(x)
    d = [[float((a - b).norm()) / x.shape[1] ** 0.5 for b in x] for a in x]
    density = [-sum(sorted(v * v for v in row)[:clusters]) / clusters for row in d]
    denser = [[j for j in range(n) if (density[j], -j) > (density[i], -i)] for i in range(n)]
    gap = [min((d[i][j] for j in denser[i]), default=max(map(max, d))) for i in range(n)]
    worth = [float(torch.tensor(density[i], dtype=torch.float64).exp()) * gap[i] for i in range(n)]
    centres = sorted(range(n), key=lambda i: (-worth[i], i))[:clusters]
    group = [min(range(clusters), key=lambda c: (d[i][centres[c]], c)) for i in range(n)]
    for c, centre in enumerate(centres):
        group[centre] = c
    return centres, group


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 25), seed=st.integers(0, 10**6), data=st.data())
def test_density_peaks_by_definition(n, seed, data):
    """Against the loops, two units at once as each alone."""
    clusters = data.draw(st.integers(1, n))
    x = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centres, group = density_peaks(x, clusters)
    for b in range(2):
        assert (centres[b].tolist(), group[b].tolist()) == plain_peaks(x[b], clusters)
        alone = density_peaks(x[b : b + 1].clone(), clusters)
        assert torch.equal(alone[0][0], centres[b])
        assert torch.equal(alone[1][0], group[b])


def test_equal_tokens_have_centres_of_their_own():
    """All tokens the same: the first are centres, and nothing is undefined."""
    centres, group = density_peaks(torch.ones(1, 6, 2), 3)
    assert centres.tolist() == [[0, 1, 2]]
    assert group.tolist() == [[0, 1, 2, 0, 0, 0]]


def test_raters():
    """Softmax over the text for each visual token; above the mean, or all where none is above it."""
    visual, text = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    expected = (visual @ text.T).softmax(1).mean(0)
    torch.testing.assert_close(rater_scores(visual, text), expected)
    assert raters(expected).tolist() == [True, True, False]
    assert raters(torch.full((3,), 0.25)).all()


def test_the_released_lists():
    """Tokens after each drop of 576, merged ones included, and their division into both kinds."""
    for retain, kept in LISTS.items():
        stage, left = SparseVLM(retain_token=retain), 576
        assert [step.layer for step in stage.steps(L32)] == [3, 7, 16]
        counts = [stage.count(576, step.share) for step in stage.steps(L32)]
        assert tuple(counts) == LEFT[retain]
        for count, plain in zip(counts, kept, strict=True):
            assert split(left, count) == (plain, count - plain)
            left = count
    for retain, kept in {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}.items():
        stage = SparseVLM(retain_token=retain, version=2)
        assert tuple(stage.count(576, step.share) for step in stage.steps(L32)) == kept
    assert [round(576 * share) for share in released_shares(192, False)] == [300, 200, 110]
    assert SparseVLM(recycle=False).needs(L32, 1) == (DecoderAttention(6, "raters", ahead=False),)


@settings(deadline=None)
@given(tokens=st.integers(1, 700), data=st.data())
def test_a_budget_is_divided_without_rest(tokens, data):
    """At least one plain token, as many merged ones as the released rule gives unless the budget is too small."""
    count = data.draw(st.integers(1, tokens))
    plain, merged = split(tokens, count)
    assert plain + merged == count
    assert plain >= 1
    assert merged == cluster_count(tokens - plain) or plain == 1


def test_merged_tokens_stand_last_and_the_rest_is_dropped():
    """Plain tokens as they are in their order, then means; of 40 tokens that go 13 are recycled."""
    needed = SparseVLM().needs(L32, 0)
    generator = torch.Generator().manual_seed(0)
    score, hidden = torch.rand(1, 100, generator=generator), torch.randn(1, 100, 5, generator=generator)
    context = Context(100, 62, None, (0,), torch.device("cpu"), dict(zip(needed, (score, hidden), strict=True)))
    assert needed == (DecoderAttention(2, "raters", ahead=False), Hidden())
    selection = SparseVLM().select(context, L32)
    best = score[0].argsort(descending=True)
    order = selection.order[0]
    assert selection.keep[0][order][:60].tolist() == best[:60].sort().values.tolist()
    out = selection.apply_features(hidden)[0][order]
    assert torch.equal(out[:60], hidden[0, best[:60].sort().values])
    target = selection.merge.target[0]
    assert set((target >= 0).nonzero().flatten().tolist()) == set(best[:73].tolist())
    for slot in order[60:]:
        members = (target == slot).nonzero().flatten()
        torch.testing.assert_close(out[order.argsort()[slot]], hidden[0, members].mean(0), rtol=0, atol=1e-5)


def test_version_2_ranks_by_the_heads_that_look_most():
    """The highest scores stay, nothing merges, and no hidden states are asked for."""
    stage = SparseVLM(version=2)
    (needed,) = stage.needs(L32, 1)
    assert needed == UnturnedAttention(6, 0.4375)
    score = torch.tensor([[3.0, 1, 4, 1, 5, 9, 2, 6]])
    selection = stage.select(Context(8, 3, None, (0,), torch.device("cpu"), {needed: score}, 1), L32)
    assert (selection.keep.tolist(), selection.merge) == ([[4, 5, 7]], None)


@pytest.mark.parametrize("family", vtc.families())
def test_version_2_in_a_padded_batch(family):
    """Each prompt keeps in every step what it keeps alone, and gives the same logits."""
    model, inputs = model_of(family), inputs_of(family)
    with patched(model, "sparsevlm", version=2, positions="keep"):
        logits, report = forward(model, inputs).logits, vtc.report(model)
        for b, single in enumerate(prompts_of(inputs)):
            alone = forward(model, single).logits
            torch.testing.assert_close(logits[b, -1], alone[0, -1], atol=1e-9, rtol=0)
            for kept, same in zip(kept_of(report, b), kept_of(vtc.report(model), 0), strict=True):
                assert torch.equal(kept, same)
    assert report.tokens_after < report.tokens_before
    assert all(image.merged_into(i) is None for image in report.images for i in range(len(image.steps)))


def test_wrong_knobs_are_refused():
    """One line: what was wrong and what is possible."""
    with pytest.raises(ConfigError, match="retain_token=100 is unknown; possible: 192, 128, 96, 64"):
        SparseVLM(retain_token=100)
    with pytest.raises(ConfigError, match="heads=0.0 is out of range"):
        SparseVLM(version=2, heads=0.0)
