"""OTPrune, MMR and ApET against plain definitions, token by token; their published defaults; knobs that are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers_merging import apet
from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import (
    AttentionColumns,
    ClsAttention,
    Context,
    Decoder,
    Encoder,
    EncoderFeatures,
    Features,
    Hidden,
    Unprojected,
)
from vtc.strategies import mmr, otprune
from vtc.strategies.apet import ApET
from vtc.strategies.apet_projector import ApETProjector, first_of, select_tokens
from vtc.strategies.mmr import MMR
from vtc.strategies.otprune import OTPrune

CLIP = Encoder("llava", 24, True, tuple(range(24)))
QWEN = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31))
examples = settings(max_examples=25, deadline=None)
sizes = st.tuples(st.integers(1, 14), st.integers(0, 10**6), st.data())


def tokens_of(n, seed, width=5):
    return torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@examples
@given(given_sizes=sizes)
def test_otprune_is_the_greedy_choice_by_determinant(given_sizes):
    """Each pick is the one with the largest determinant of the picked part of I + gamma G G, written out."""
    n, seed, data = given_sizes
    count, features = data.draw(st.integers(1, n)), tokens_of(n, seed)
    found = otprune.picks(features, count, 0.05)
    for x, order in zip(features, found.tolist(), strict=True):
        x = x / x.norm(dim=0)
        kernel = torch.eye(n) + 0.05 * (x @ x.T) @ (x @ x.T)
        picks = []
        for pick in order:
            left = [i for i in range(n) if i not in picks]
            worth = {i: float(torch.logdet(kernel[[*picks, i]][:, [*picks, i]])) for i in left}
            assert worth[pick] == pytest.approx(max(worth.values()), abs=1e-9)
            picks.append(pick)
    assert torch.equal(otprune.picks(features[1:].clone(), count, 0.05)[0], found[1])


def test_otprune_guards():
    """A channel of zeros changes nothing; equal tokens are picked once each, the lower index first."""
    features = tokens_of(9, 1)
    wide = torch.cat([features, torch.zeros(2, 9, 1, dtype=torch.float64)], 2)
    assert torch.equal(otprune.picks(features, 6), otprune.picks(wide, 6))
    assert otprune.picks(torch.ones(1, 5, 3), 4).tolist() == [[0, 1, 2, 3]]
    assert otprune.picks(torch.zeros(1, 5, 3), 5).tolist() == [[0, 1, 2, 3, 4]]


@examples
@given(given_sizes=sizes, lam=st.sampled_from([0.0, 0.3, 1.0]), each=st.integers(1, 4))
def test_mmr_by_definition(given_sizes, lam, each):
    """Importance less the largest cosine to a pick, both taken anew in every step."""
    n, seed, data = given_sizes
    count, features = data.draw(st.integers(1, n)), tokens_of(n, seed)
    score = torch.rand(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = mmr.picks(score, features, count, lam, each)
    for x, raw, order in zip(features, score, found.tolist(), strict=True):
        importance = (raw - raw.min()) / (raw.max() - raw.min() + 1e-6)
        cosine = torch.cosine_similarity(x[:, None], x[None], dim=-1)
        picks = []
        while len(picks) < count:
            near = cosine[:, picks].amax(1) if picks else torch.zeros(n, dtype=torch.float64)
            worth = (lam * importance - (1 - lam) * near if picks else importance).tolist()
            left = sorted((i for i in range(n) if i not in picks), key=lambda i: (-worth[i], i))
            picks += left[: min(each, count - len(picks))]
        assert order == picks


@examples
@given(given_sizes=sizes, own=st.sampled_from([0.0, 0.5]), by_error=st.booleans(), many=st.integers(1, 4))
def test_apet_by_definition(given_sizes, own, by_error, many):
    """Kept tokens and what they become, with basis, errors and merging written out; two units as each alone."""
    n, seed, data = given_sizes
    count, features = data.draw(st.integers(1, n)), tokens_of(n, seed, 8)
    first = torch.tensor([seed % n, 0])
    found = select_tokens(features, count, many, first, own, by_error)
    out = found.apply_features(features)
    for b in range(2):
        kept, tokens = apet(features[b], count, many, by_error, own, int(first[b]))
        assert found.keep[b].tolist() == kept
        torch.testing.assert_close(out[b], tokens, rtol=0, atol=1e-9)


def test_apet_begins_where_it_is_told():
    """An index, the token nearest to the mean, or a seeded draw that depends on the unit's place alone."""
    x = torch.tensor([[[0.0, 9], [1, 1], [8, 0], [3, 3]]]).expand(3, -1, -1)
    assert first_of(x, 2, 0, (0, 1, 2)).tolist() == [2, 2, 2]
    assert first_of(x, 9, 0, (0, 1, 2)).tolist() == [3, 3, 3]
    assert first_of(x, "mean", 0, (0, 1, 2)).tolist() == [3, 3, 3]
    x = torch.randn(1, 500, 4)
    drawn = [int(first_of(x, "random", seed, (place,))) for seed, place in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3


def test_what_they_look_at_and_keep_as_published():
    """Signals by encoder, budgets of the shipped files, ApET's 96 and 32 of 576."""
    assert OTPrune().needs(CLIP) == (Features(),)
    assert MMR().needs(CLIP) == (ClsAttention(22), Features())
    assert MMR(importance="received").needs(QWEN) == (AttentionColumns(30, "mean"), Features())
    assert ApETProjector().needs(CLIP) == (EncoderFeatures(), Unprojected())
    assert resolve("apet", "qwen2_5_vl").projector.stage.needs(QWEN) == (Features(),)
    assert resolve("otprune", "llava").allocate().projector.count(576) == 56
    assert resolve("apet", "llava").allocate(Decoder("llava", 32)).projector.count(576) == 96
    step, decoder = ApET().steps(Decoder("llava", 32))[0], Decoder("llava", 32)
    assert (step.layer, ApET().count(96, step.share), ApET().count(192, step.share)) == (16, 32, 64)
    assert ApET().needs(decoder, 0) == (Hidden(),)


def test_apet_merges_before_the_projector_beside_cls():
    """[CLS] flows nowhere, and everything else flows as without it."""
    features = tokens_of(30, 4, 16)
    stage, signals = ApETProjector(basis=3), {EncoderFeatures(): features}
    found = stage.select(Context(30, 9, (5, 6), (0, 1), torch.device("cpu"), signals), CLIP)
    plain = select_tokens(features, 9, 3, torch.zeros(2, dtype=torch.long))
    cls = torch.full_like(features[:, :1], torch.nan)
    cls[:] = 1e9
    out = found.apply_features(torch.cat([cls, features], 1))
    assert torch.equal(out, plain.apply_features(features))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OTPrune(gamma=0.0), "gamma=0.0 is out of range; possible"),
        (lambda: MMR(lam=1.5), "lam=1.5 is out of range; possible"),
        (lambda: MMR(picks_per_step=0), "picks_per_step=0 takes nothing; possible"),
        (lambda: ApETProjector(basis=0), "basis=0 is out of range; possible"),
        (lambda: ApETProjector(own_share=1.0), "own_share=1.0 is out of range; possible"),
        (lambda: ApET(first=-1), "first=-1 is no token; possible"),
        (lambda: ApET(ratio=0.0), "ratio=0.0 is out of range; possible"),
    ],
)
def test_wrong_knobs_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
