"""LLaVA-NeXT served pruned: tiles, unpadding and newlines, the budget divided over the tiles or not."""

import pytest

from tests.vllm.engines import differences, overrides, request
from tests.vllm.pictures import noise_asks, text_ask
from tests.vllm.reference import reference


@pytest.mark.parametrize(
    "strategy, knobs, keeps",
    [("hiprune", {}, (0.25, 0.6)), ("vtc_cls", {"scope": "per_image"}, (0.25,)), ("divprune", {}, (0.1, 60))],
)
def test_tilings(engines, checkpoint, folder, strategy, knobs, keeps):
    """Five shapes of pictures and as many tilings, one to three pictures, text alone, two passes at each keep."""
    model, asks = checkpoint("llava_next"), [*noise_asks(folder, "llava_next"), text_ask()]
    rounds = [[request(ask, keep) for ask in asks] for keep in keeps] * 2
    settings = overrides(model, strategy, keeps[0], max_keep=0.9, **knobs)
    engine = engines.start(model, rounds, settings)
    want = [reference(model, asks, strategy, keep, **knobs) for keep in keeps] * 2
    for expected, answers in zip(want, engine.answers(), strict=True):
        assert not differences(asks, expected, answers)
    assert len({tuple(w.ids) for row in want for w in row}) > 12 * len(keeps)


def test_chunks(engines, checkpoint, folder):
    """Prompts computed in pieces of 60 tokens, which end inside tiles; without the prefix cache."""
    model, asks = checkpoint("llava_next"), noise_asks(folder, "llava_next")
    settings = overrides(model, "hiprune", 0.4)
    engine = engines.start(
        model, [[request(ask) for ask in asks]], settings, max_num_batched_tokens=60, max_num_seqs=4,
        enable_prefix_caching=False,
    )  # fmt: skip
    expected = reference(model, asks, "hiprune", 0.4)
    (answers,) = engine.answers()
    assert not differences(asks, expected, answers)
