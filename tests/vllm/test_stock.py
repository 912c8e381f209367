"""The yardstick itself: without pruning, vLLM's stock classes and transformers write the same, prompt by prompt."""

import pytest

from tests.vllm.engines import differences, request
from tests.vllm.pictures import benchmark_asks, noise_asks, pair_asks, scene_asks, text_ask
from tests.vllm.reference import reference, written_text


def test_demo_model(engines, demo, folder):
    """One and two pictures a prompt; and the answers are right, as the model was trained to answer."""
    asks = scene_asks(folder, scenes=4, each=3) + pair_asks(folder, 4)
    known, right = benchmark_asks(folder, 14)
    engine = engines.start(demo, [[request(ask) for ask in asks + known]])
    expected = reference(demo, asks + known)
    (answers,) = engine.answers()
    assert not differences(asks + known, expected, answers)
    texts = [written_text(demo, answer["ids"]) for answer in answers[len(asks) :]]
    assert sum(a == b for a, b in zip(texts, right, strict=True)) >= 12


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen2_vl", "llava_next"])
def test_tiny_models(engines, checkpoint, folder, kind):
    """Five sizes, one to three pictures, text alone, two passes; what is written depends on the pictures."""
    model = checkpoint(kind)
    asks = [*noise_asks(folder, kind), text_ask()]
    engine = engines.start(model, [[request(ask) for ask in asks]] * 2)
    expected = reference(model, asks)
    for answers in engine.answers():
        assert not differences(asks, expected, answers)
    pairs = zip(asks, expected, strict=True)
    alone = [w.ids for ask, w in pairs if len(ask.images) == 1 and ask.prompt == asks[0].prompt]
    assert len(alone) > 1
    assert len({tuple(ids) for ids in alone}) == len(alone), "the same text about different pictures"
