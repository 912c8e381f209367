"""PruneSID: suppression as a plain loop, quotas, components, and what it reads on each family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import AttentionColumns, ClsAttention, Context, Encoder, EncoderFeatures, Features, Unprojected
from vtc.kernels.components import loadings
from vtc.kernels.suppression import suppress
from vtc.strategies.prunesid import PruneSID, quotas

CLIP = Encoder("llava", 24, True, tuple(range(24)), tokens=576)
QWEN = Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31))


def plain(similarity, scores, groups, threshold):
    """The tokens that stay, from the definition."""
    live, stay = [i for i, score in enumerate(scores) if score > 0], []
    while live:
        best = max(live, key=lambda i: (scores[i], -i))
        stay.append(best)
        live = [i for i in live if i != best and (groups[i] != groups[best] or similarity[i][best] <= threshold)]
    return sorted(stay)


@settings(max_examples=100)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6), many=st.integers(1, 4), tau=st.sampled_from([0.0, 0.3, 0.8]))
def test_suppression_is_the_plain_loop(n, seed, many, tau):
    """Ties and scores of 0 among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    similarity = torch.corrcoef(x).view(n, n).nan_to_num(1)
    scores = (torch.rand(n, generator=generator) * 6).floor()
    groups = torch.randint(0, many, (n,), generator=generator)
    stays = suppress(similarity, scores, groups, tau).nonzero().flatten().tolist()
    assert stays == plain(similarity.tolist(), scores.tolist(), groups.tolist(), tau)


def test_a_chain_is_followed_to_its_end():
    """Each token is like its neighbours only: of a chain every second one stays."""
    similarity = torch.eye(50) + torch.eye(50).roll(1, 0) + torch.eye(50).roll(-1, 0)
    stays = suppress(similarity, torch.arange(50, 0, -1).float(), torch.zeros(50, dtype=torch.long), 0.5)
    assert stays.nonzero().flatten().tolist() == list(range(0, 50, 2))


@settings(max_examples=100)
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=12), seed=st.integers(0, 10**6), cls=st.integers(0, 1))
def test_quotas_add_up(sizes, seed, cls):
    """As many as wanted, none more than a group has, at least one of each group where there are enough."""
    generator, total = torch.Generator().manual_seed(seed), sum(sizes)
    if total <= len(sizes) + cls:
        return
    count = int(torch.randint(len(sizes) + cls, total + 1, (1,), generator=generator))
    stay = torch.tensor([int(torch.randint(min(1, n), n + 1, (1,), generator=generator)) for n in sizes])
    quota = quotas(torch.tensor(sizes), stay, count, count - cls)
    assert int(quota.sum()) == count - cls
    assert all(min(1, n) <= q <= n for q, n in zip(quota.tolist(), sizes, strict=True))


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_components_are_singular_vectors(shape):
    """Either Gram matrix; beyond the rank, which centring lowers by one, they weigh nothing."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, count = loadings(x, 12), min(shape)
    centred = x.sigmoid().double()
    centred = centred - centred.mean(1, keepdim=True)
    expected = torch.linalg.svd(centred, full_matrices=False).U.abs()
    rank = min(shape[0], shape[1] - 1)
    torch.testing.assert_close(found[:, :rank], expected[:, :rank], rtol=0, atol=1e-7)
    assert bool((found[:, rank:] == 0).all())
    torch.testing.assert_close(loadings(x, count, 3)[:, :rank], expected[:, :rank], rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="13 components of"):
        loadings(x, 13)


def test_a_draw_depends_on_seed_and_place():
    """Other seeds give other components, and an image of a batch those that it has alone."""
    features = torch.randn(2, 60, 20, generator=torch.Generator().manual_seed(0))

    def kept(seed, units):
        signals, device = {Features(): features[list(units)]}, torch.device("cpu")
        stage = PruneSID(variant="qwen", factorisation="randomised", seed=seed)
        return stage.select(Context(60, 20, (6, 10), units, device, signals), QWEN).keep.tolist()

    assert kept(0, (0, 1)) == kept(0, (0,)) + kept(0, (1,))
    assert kept(0, (0,)) != kept(1, (0,))


def test_what_it_reads():
    stage = resolve("prunesid", "llava").projector.stage
    assert stage == PruneSID()
    assert stage.needs(CLIP) == (EncoderFeatures(), ClsAttention(22), Unprojected())
    assert stage.needs(QWEN) == (EncoderFeatures(), AttentionColumns(30, "mean"))
    assert resolve("prunesid", "qwen2_vl").projector.stage.needs(QWEN) == (Features(),)
    with pytest.raises(ConfigError, match="seed=-1 is out of range"):
        resolve("prunesid", "llava", seed=-1)
