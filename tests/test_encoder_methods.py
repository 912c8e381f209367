"""The methods inside the encoder as functions of tensors: counts, order, sizes, and what each step leaves."""

import contextlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtc.core.errors import ConfigError
from vtc.core.signals import Context, Encoder, EncoderKeys, Hidden, Sizes
from vtc.strategies import METHODS
from vtc.strategies.flowcut import FlowCut, cut_size
from vtc.strategies.tome import ToMe

ENCODER = Encoder("test", depth=8, has_cls=True, global_layers=tuple(range(8)), output=6)
NO_CLS = Encoder("test", depth=8, has_cls=False, global_layers=tuple(range(8)))
CLIP = Encoder("llava", 24, True, tuple(range(24)), 576, output=22)
INSIDE = [name for name in METHODS if METHODS[name].site == "encoder"]
methods = pytest.mark.parametrize("method", [name for name in INSIDE if not METHODS[name].adaptive])
encoders = pytest.mark.parametrize("encoder", [ENCODER, NO_CLS], ids=["cls", "no-cls"])


def context(stage, encoder, tokens, count, units, seed, step) -> Context:
    """Random signals of the right shape."""
    generator = torch.Generator().manual_seed(seed)
    signals = {}
    for signal in stage.needs(encoder, step):
        wide = (4,) if isinstance(signal, EncoderKeys | Hidden) else ()
        signals[signal] = torch.rand(units, tokens, *wide, generator=generator)
        if isinstance(signal, Sizes):
            signals[signal] = torch.randint(1, 9, (units, tokens), generator=generator).float()
    every = tuple(range(units))
    return Context(tokens, count, None, every, torch.device("cpu"), signals, step, images=every)


@methods
@encoders
@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(st.integers(2, 40), st.integers(1, 3), st.integers(0, 10**6), st.data()))
def test_a_step_leaves_count_and_loses_no_token(method, encoder, shape):
    """Ascending, distinct slots, an order that permutes them, each unit as if alone, and sizes that add up."""
    tokens, units, seed, data = shape
    stage = METHODS[method]()
    step = data.draw(st.integers(0, len(stage.steps(encoder)) - 1))
    count = data.draw(st.integers((tokens + 1) // 2, tokens))
    given_context = context(stage, encoder, tokens, count, units, seed, step)
    found = stage.select(given_context, encoder)
    assert found.check(tokens) is found
    assert found.keep.shape == (units, count)
    assert bool((found.keep[:, 1:] > found.keep[:, :-1]).all())
    if found.order is not None:
        assert torch.equal(found.order.sort(1).values, torch.arange(count).expand(units, -1))
    weight = found.mix
    if weight is None:
        assert int(found.merge.target.min()) >= 0
        weight = torch.zeros(units, count, tokens).scatter_(
            1, found.merge.target.unsqueeze(1), found.merge.weight.unsqueeze(1)
        )
        if method == "tome":
            sizes = given_context[Sizes()]
            total = torch.zeros(units, count).scatter_add_(1, found.merge.target, sizes)
            torch.testing.assert_close(found.merge.weight, sizes / total.gather(1, found.merge.target))
    torch.testing.assert_close(weight.sum(2), torch.ones(units, count))
    last = {signal: values[-1:] for signal, values in given_context.signals.items()}
    alone = stage.select(replace(given_context, signals=last, ordinals=(units - 1,), images=(0,)), encoder)
    assert torch.equal(alone.keep[0], found.keep[-1])


@pytest.mark.parametrize("method", INSIDE)
@encoders
@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(1, 600), share=st.floats(0.01, 1.0))
def test_the_steps_end_at_the_target(method, encoder, tokens, share):
    """Counts never rise and end at the target, wherever halving in five layers reaches it."""
    stage, target = METHODS[method](), max(1, round(tokens * share))
    if target < tokens / 2**4:
        with contextlib.suppress(ConfigError):  # halving does not reach it everywhere
            assert stage.counts(tokens, target, encoder)[-1] == target
        return
    counts = stage.counts(tokens, target, encoder)
    assert len(counts) == len(stage.steps(encoder))
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[0] <= tokens
    assert counts[-1] == target


def test_tome_takes_a_constant_r():
    """17 pairs a layer, and what does not divide is left out of the last."""
    counts = ToMe().counts(576, 192, CLIP)
    steps = [a - b for a, b in zip((576, *counts), counts, strict=False)]
    assert steps == [17] * 22 + [10]
    falling = ToMe(inflection=-1.0).counts(576, 192, CLIP)
    assert 576 - falling[0] > 576 - counts[0]


def test_flowcut_cuts_behind_odd_layers_of_clip_and_the_last_of_qwen():
    assert [cut.layer for cut in FlowCut().steps(CLIP)] == list(range(1, 22, 2))
    qwen = Encoder("qwen2_vl", 32, False, tuple(range(32)), cell=4)
    assert [cut.layer for cut in FlowCut().steps(qwen)] == list(range(1, 32, 2))
    with pytest.raises(ConfigError, match="merge=cells"):
        FlowCut().steps(Encoder("qwen2_5_vl", 32, False, (7, 15, 23, 31), cell=4))


def test_flowcut_cuts_more_where_attention_is_concentrated():
    """Nothing goes at even attention; at attention to one token the whole term does. By the definition."""
    even, one = torch.full((1, 100), 0.01), torch.zeros(1, 100)
    one[0, 3] = 1.0
    assert cut_size(torch.cat([even, one]), 20, 4).tolist() == [0, 40]
