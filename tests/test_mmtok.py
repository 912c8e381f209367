"""MMTok as a function of tensors: its weights and picks against the definition, what may not be chosen, its knobs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.config.resolve import resolve
from vtc.core.errors import ConfigError
from vtc.core.signals import Context, Encoder, EncoderFeatures, Features, TextEmbeddings
from vtc.strategies.mmtok import MMTok, select_tokens, weights

ENCODER = Encoder("llava", 24, True, tuple(range(24)))
sizes = st.tuples(st.integers(1, 3), st.integers(0, 6), st.integers(1, 14), st.integers(0, 10**6))
examples = settings(max_examples=40, deadline=None)


def signals_of(units, words, tokens, seed=0, dtype=torch.float64):
    """Words [B, m, 6], projected [B, N, 6] and unprojected [B, N, 4]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (units, words, 6), (units, tokens, 6), (units, tokens, 4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def context_of(given_signals, count, stage):
    units, tokens = given_signals[1].shape[:2]
    signals = dict(zip(stage.needs(ENCODER), given_signals, strict=True))
    return Context(tokens, count, None, tuple(range(units)), torch.device("cpu"), signals)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def plain_weights(text, projected, unprojected, alpha, tau_v, tau_t):
    """The definition for one image, in lists."""
    rows = []
    for asking, asked, tau, factor in ((text, projected, tau_t, 1), (unprojected, unprojected, tau_v, alpha)):
        for a in asking:
            powers = [math.exp((cosine(a, b) - 1) / tau) for b in asked]
            rows.append([factor * p / sum(powers) / len(asking) for p in powers])
    return rows


def plain_order(rows, count, allowed):
    """Greedy picks for the weights of one image, each the best of all in that step."""
    covered, order = [0.0] * len(rows), []
    for _ in range(min(count, len(allowed))):
        gains = {j: sum(max(row[j] - c, 0) for row, c in zip(rows, covered)) for j in allowed if j not in order}
        best = max(gains, key=lambda j: (gains[j], -j))
        order.append(best)
        covered = [max(row[best], c) for row, c in zip(rows, covered)]
    return order


@examples
@given(sizes=sizes, alpha=st.sampled_from([0, 0.5, 2.0]), tau_v=st.floats(0.05, 1), tau_t=st.floats(0.01, 1))
def test_mmtok_is_the_definition(sizes, alpha, tau_v, tau_t):
    """Weights and picks of every unit, in float64; tokens that may not be chosen are not."""
    units, words, tokens, seed = sizes
    given_signals = signals_of(units, words, tokens, seed)
    found = weights(*given_signals, alpha, tau_v, tau_t)
    assert found.shape == (units, words + tokens, tokens)
    generator = torch.Generator().manual_seed(seed)
    excluded = torch.rand(units, tokens, generator=generator) < 0.4
    count = int(torch.randint(1, tokens + 1, (), generator=generator))
    free, limited = select_tokens(found, count), select_tokens(found, count, excluded)
    assert free.valid is None
    for b in range(units):
        rows = plain_weights(*(x[b].tolist() for x in given_signals), alpha, tau_v, tau_t)
        torch.testing.assert_close(found[b], torch.tensor(rows, dtype=torch.float64), rtol=1e-9, atol=1e-12)
        rows = found[b].tolist()
        for selection, allowed in ((free, range(tokens)), (limited, (~excluded[b]).nonzero().flatten().tolist())):
            kept, picks = selection.row(b).tolist(), plain_order(rows, count, allowed)
            assert kept == sorted(set(kept))
            assert len(kept) == len(picks)
            # Sums of a few numbers in another order may turn a tie round; then the sets are worth the same.
            worths = [sum(max((row[j] for j in chosen), default=0) for row in rows) for chosen in (kept, picks)]
            assert set(kept) == set(picks) or worths[0] == pytest.approx(worths[1], rel=1e-9)


@examples
@given(sizes=sizes)
def test_rows_are_shares(sizes):
    """Words share 1 among themselves and so do tokens alpha; a length of a vector is nothing; float16 is computed in
    float32; a vector of zeros is no NaN."""
    units, words, tokens, seed = sizes
    given_signals = signals_of(units, words, tokens, seed, torch.float16)
    found = weights(*given_signals, alpha=0.5)
    assert found.dtype == torch.float32
    rows = torch.tensor([1 / max(words, 1)] * words + [0.5 / tokens] * tokens)
    torch.testing.assert_close(found.sum(2), rows.expand(units, -1))
    assert found.equal(weights(*(x.float() for x in given_signals), alpha=0.5))
    assert found.equal(weights(*(4 * x.float() for x in given_signals), alpha=0.5))
    for x in given_signals:
        x[:, -1:] = 0
    assert weights(*given_signals).isfinite().all()


@examples
@given(sizes=sizes, seed=st.integers(0, 10**6))
def test_a_unit_is_chosen_as_if_alone(sizes, seed):
    """Whatever stands beside it in the batch, also where tokens are equal and the last bit decides."""
    units, words, tokens, _ = sizes
    given_signals = [x[:, torch.arange(x.shape[1]) // 2] for x in signals_of(units, words, tokens, seed, torch.float32)]
    stage, count = MMTok(), max(1, tokens // 3)
    kept = stage.select(context_of(given_signals, count, stage), ENCODER).keep
    for b in range(units):
        alone = stage.select(context_of([x[b : b + 1] for x in given_signals], count, stage), ENCODER).keep
        assert kept[b].equal(alone[0])


def test_weights_are_stored_token_by_token():
    """As the greedy choice reads them, without a copy; no autograd, and no half precision inside autocast."""
    given_signals = signals_of(2, 3, 20, dtype=torch.float32)
    found = weights(*(x.requires_grad_() for x in given_signals))
    assert found.transpose(1, 2).is_contiguous()
    assert not found.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert weights(*given_signals).equal(found)


def test_fewer_tokens_than_asked():
    """Of a picture that is nearly all padding what is left is kept once, and nothing else."""
    found = weights(*signals_of(3, 2, 9))
    excluded = torch.ones(3, 9, dtype=torch.bool)
    excluded[0, [2, 7]] = False
    excluded[1, :8] = False
    kept = select_tokens(found, 5, excluded)
    assert kept.keep.shape == (3, 5)
    assert kept.row(0).tolist() == [2, 7]
    assert len(kept.row(1)) == 5
    assert 8 not in kept.row(1)
    assert kept.row(2).tolist() == []


def test_equal_tokens_are_chosen_once_each():
    """A blank picture: every token is like every other, and as many as asked are kept."""
    stage, alike = MMTok(), [x[:, :1].expand(-1, 30, -1) for x in signals_of(2, 1, 1)]
    for count in (1, 7, 29, 30):
        kept = stage.select(context_of(alike, count, stage), ENCODER).keep
        assert kept.shape == (2, count)
        assert bool((kept.diff(dim=1) > 0).all())


def test_all_tokens_are_kept_without_looking():
    """A budget that spares every token computes nothing, in order."""
    stage = MMTok()
    signals = [torch.full((2, n, 3), torch.nan) for n in (1, 8, 8)]
    kept = stage.select(context_of(signals, 8, stage), ENCODER)
    assert kept.keep.equal(torch.arange(8).expand(2, -1))


def test_the_question_and_the_picture_count():
    """A token like the word is chosen first; without words, or with a large alpha, another may be."""
    words, projected, unprojected = signals_of(1, 1, 40, seed=3)
    stage = MMTok()
    for token in (0, 17, 39):
        words[0, 0] = projected[0, token]
        kept = stage.select(context_of([words, projected, unprojected], 1, stage), ENCODER)
        assert kept.keep.tolist() == [[token]]
    blind = select_tokens(weights(words[:, :0], projected, unprojected), 1).keep
    much = MMTok(alpha=1e6)
    assert much.select(context_of([words, projected, unprojected], 1, much), ENCODER).keep.equal(blind)
    assert blind.tolist() != [[39]]


def test_what_each_family_asks_for():
    """LLaVA takes keywords, Qwen the question after a prefix and a lower temperature for words."""
    for family in ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl"):
        qwen = family.startswith("qwen")
        config = resolve("mmtok", family).projector
        text = TextEmbeddings(False, "Question: ") if qwen else TextEmbeddings(True, "")
        assert config.stage.needs(ENCODER) == (text, Features(), EncoderFeatures())
        assert config.stage.needs_text
        assert (config.stage.alpha, config.stage.tau_v, config.stage.tau_t) == (0.5, 0.2, 0.01 if qwen else 0.02)
        assert config.positions == ("keep" if qwen else "compact")
        assert config.scope == ("per_tile" if family == "llava_next" else "per_image")
    assert not MMTok(keywords=False).needs_text
    assert MMTok(keywords=False, prefix="Find: ").needs_text


@pytest.mark.parametrize(("ratio", "kept"), [(0.2, 71), (0.1, 35), (0.05, 17)])
def test_qwen_rounds_down_as_published(ratio, kept):
    assert resolve("mmtok", "qwen2_5_vl", keep=ratio).allocate().projector.count(357) == kept


@pytest.mark.parametrize(("total", "each"), [(640, 128), (320, 64), (160, 32)])
def test_llava_next_keeps_the_published_number_of_each_of_five_tiles(total, each):
    assert resolve("mmtok", "llava_next", keep=total).allocate().projector.quotas([[576] * 5]) == [[each] * 5]


@pytest.mark.parametrize("knob", [{"alpha": -0.1}, {"alpha": math.nan}, {"alpha": math.inf}, {"tau_v": 0.0},
                                  {"tau_t": -1.0}, {"tau_t": math.nan}, {"tau_v": math.inf}])  # fmt: skip
def test_knobs_out_of_range(knob):
    """One line with the value and what is possible."""
    (name,) = knob
    with pytest.raises(ConfigError, match=rf"^{name}=.* is out of range; possible: .*\Z"):
        resolve("mmtok", "llava", **knob)
