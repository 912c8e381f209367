"""Recoverable Compression: outliers against their definition and scikit-learn; budgets, merging and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.core.errors import ConfigError
from vtc.core.signals import (
    ClsAttention,
    Context,
    Encoder,
    EncoderFeatures,
    EncoderKeys,
    Features,
    TextEmbeddings,
    TextRelevance,
    Unprojected,
)
from vtc.kernels.outliers import local_outliers
from vtc.strategies.recoverable import Recoverable

CLIP = Encoder("llava", 24, True, tuple(range(24)))


def factors(values: list[float], neighbors: int) -> list[float]:
    """Local outlier factors, written out."""
    n = len(values)
    k = max(1, min(neighbors, n - 1))
    near = [sorted((abs(values[i] - values[j]), j) for j in range(n) if j != i)[:k] for i in range(n)]
    density = [1 / (sum(max(d, near[j][-1][0]) for d, j in row) / k + 1e-10) for row in near]
    return [sum(density[j] for _, j in row) / k / density[i] for i, row in enumerate(near)]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 40), k=st.integers(1, 12), seed=st.integers(0, 10**6), data=st.data())
def test_outliers_by_definition(n, k, seed, data):
    """Two rows at once, some of their numbers left out, as each row's points alone."""
    values = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    among = torch.rand(2, n, generator=torch.Generator().manual_seed(seed + 1)) < data.draw(st.sampled_from([0.6, 1]))
    among[:, :2] = True
    found = local_outliers(values, k, among)
    assert not (found & ~among).any()
    for b in range(2):
        expected = factors(values[b][among[b]].tolist(), k)
        assert found[b][among[b]].tolist() == [factor > 1.5 for factor in expected]
    if among.all():
        assert torch.equal(local_outliers(values, k), found)


def test_outliers_at_the_edges():
    """One point, equal points, and more neighbours than points."""
    assert not local_outliers(torch.rand(1, 1), 20).any()
    assert not local_outliers(torch.ones(1, 9), 3).any()
    assert local_outliers(torch.tensor([[0.0, 0.1, 0.2, 0.3, 9.0]]), 2).tolist() == [[False] * 4 + [True]]


@pytest.mark.parametrize("k", [5, 10, 20])
@pytest.mark.parametrize("n", [12, 144, 576])
def test_outliers_are_scikit_learns(n, k):
    neighbors = pytest.importorskip("sklearn.neighbors")
    values = torch.randn(n, generator=torch.Generator().manual_seed(n + k)).exp()
    model = neighbors.LocalOutlierFactor(n_neighbors=k, contamination="auto")
    expected = model.fit_predict(values.double().numpy()[:, None]) < 0
    assert local_outliers(values[None], k)[0].tolist() == expected.tolist()


def signals(stage, tokens=80, seed=0, units=2, width=12):
    """Scores with a heavy tail, so that there are outliers of every kind."""
    made = {}
    for i, signal in enumerate(s for s in stage.needs(CLIP) if s != Unprojected()):
        generator = torch.Generator().manual_seed(seed + i)
        if isinstance(signal, ClsAttention):
            made[signal] = (3 * torch.randn(units, tokens, generator=generator)).softmax(1)
        else:
            made[signal] = torch.randn(units, 6 if isinstance(signal, TextEmbeddings) else tokens, width,
                                       generator=generator) ** 3  # fmt: skip
    return made


def by_hand(stage, attention, keys, similarity, features):
    """The released steps or the fixed ones, token by token; the sequence [m, D] and its tokens."""
    n, width = features.shape

    def count(number, values, k):
        return int(number * (sum(f > 1.5 for f in factors(values, k)) / len(values)))

    def best(values, among, number):
        return sorted(among, key=lambda i: (-values[i], i))[:number]

    a, s = attention.tolist(), similarity.tolist()
    vision = best(a, range(n), max(1, count(n, a, stage.lof_k_vision)))
    s = [min(s) if i in vision else x for i, x in enumerate(s)]
    text = best(s, range(n), count(n - len(vision), s, stage.lof_k_text))
    main = sorted({*vision, *text})
    rest = [i for i in range(n) if i not in main]
    whole = width if stage.mode == "released" else len(rest)
    centres = best(a, rest, min(len(rest), count(whole, [a[i] for i in rest], stage.lof_k_center)))
    key = {i: keys[j if stage.mode == "released" else i] for j, i in enumerate(rest)}
    rows = [features[i] for i in main]
    for c in centres:
        cosine = {i: float(torch.cosine_similarity(key[c], key[i], dim=0)) for i in rest if i != c}
        like = {i: value + stage.text_gain * s[i] for i, value in cosine.items()}
        rows.append(features[c] + sum(a[i] * features[i] for i in best(like, list(like), stage.cluster_size)))
    if centres:
        rows.append(sum(a[i] * features[i] for i in rest if i not in centres))
    return torch.stack(rows), main + centres


@pytest.mark.parametrize("mode", ["released", "fixed"])
@pytest.mark.parametrize("seed", range(6))
def test_by_definition(mode, seed):
    """Both modes, with the question, each unit of two alone; [CLS] flows nowhere."""
    stage = Recoverable(mode=mode, lof_k_vision=6, lof_k_text=6, lof_k_center=4, cluster_size=5)
    made = {signal: x.double() for signal, x in signals(stage, seed=seed).items()}
    found = stage.select(Context(80, 70, (8, 10), (0, 1), torch.device("cpu"), made), CLIP)
    attention, keys, features, projected, words = made.values()
    cls = torch.full((2, 1, 12), 1e9, dtype=torch.float64)
    out, centres = found.apply_features(torch.cat([cls, features], 1)), 0
    for b in range(2):
        similarity = torch.cosine_similarity(projected[b], words[b].sum(0), dim=-1) / 768**0.5
        expected, tokens = by_hand(stage, attention[b], keys[b], similarity, features[b])
        length = int(found.valid[b].sum())
        order = found.order[b, :length]
        assert order.sort().values.tolist() == list(range(length))
        assert found.keep[b][order].tolist()[: len(tokens)] == tokens
        torch.testing.assert_close(out[b][order], expected, rtol=0, atol=1e-9)
        centres += len(expected) - len(tokens)
    assert centres or seed


@pytest.mark.parametrize("most", [1, 2, 5, 9, 30])
def test_the_count_is_the_most(most):
    """What is cut is cut from the last step on, and what stays is that of a larger count."""
    stage = Recoverable(lof_k_vision=6, lof_k_text=6, lof_k_center=4, cluster_size=5)
    made = signals(stage)
    found = stage.select(Context(80, most, (8, 10), (0, 1), torch.device("cpu"), made), CLIP)
    every = stage.select(Context(80, 79, (8, 10), (0, 1), torch.device("cpu"), made), CLIP)
    for b in range(2):
        kept, all_ = (x.keep[b][x.order[b, : int(x.valid[b].sum())]].tolist() for x in (found, every))
        assert 1 <= len(kept) <= min(most, len(all_))
        assert len(set(kept)) == len(kept)
        if len(kept) == len(all_):
            assert kept == all_
    whole = stage.select(Context(80, 80, (8, 10), (0, 1), torch.device("cpu"), made), CLIP)
    assert whole.keep.shape == (2, 80)
    assert whole.merge is None


def test_signals_and_knobs():
    cls, keys = ClsAttention(23, True), EncoderKeys(23, True)
    assert Recoverable().needs(CLIP) == (
        cls, keys, EncoderFeatures(), Unprojected(), Features(), TextEmbeddings(),
    )  # fmt: skip
    assert Recoverable(text="none").needs(CLIP) == (cls, keys, EncoderFeatures(), Unprojected())
    assert Recoverable(text="clip").needs(CLIP)[4:] == (TextRelevance(),)
    assert Recoverable(text="clip").needs_text
    with pytest.raises(ConfigError, match="cluster_size=0 is out of range; possible: 1 or more"):
        Recoverable(cluster_size=0)
