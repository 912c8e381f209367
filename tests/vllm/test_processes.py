"""More than one process: the engine core on its own, and two ranks that must keep the same tokens."""

import pytest

from tests.vllm.engines import TWO_RANKS, differences, overrides, request
from tests.vllm.pictures import noise_asks, pair_asks, scene_asks, text_ask
from tests.vllm.reference import loaded, reference


def test_engine_core_apart(engines, demo, folder):
    """The engine core in a process of its own, which loads the plugin and the settings for itself; prompts as text and
    as token ids."""
    asks = scene_asks(folder, 4, 2) + pair_asks(folder, 2)
    tokenizer = loaded(demo)[1].tokenizer
    ids = [request(ask, prompt=tokenizer(ask.prompt)["input_ids"]) for ask in asks]
    settings = overrides(demo, "hiprune", 0.25)
    engine = engines.start(
        demo, [[request(ask) for ask in asks], ids], settings, env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    )
    expected = reference(demo, asks, "hiprune", 0.25)
    for answers in engine.answers():
        assert not differences(asks, expected, answers)


@pytest.mark.parametrize("strategy", ["hiprune", "vtc_cls", "divprune", "visionzip"])
def test_two_ranks_demo(engines, demo, folder, strategy):
    """The demo model's heads on two ranks; both rank the tokens by the same sums."""
    asks = scene_asks(folder, 6, 2) + pair_asks(folder, 4)
    rounds = [[request(ask, keep) for ask in asks] for keep in (0.25, 0.1)]
    settings = overrides(demo, strategy, 0.25)
    engine = engines.start(demo, rounds, settings, env=TWO_RANKS, tensor_parallel_size=2)
    expected = [reference(demo, asks, strategy, keep) for keep in (0.25, 0.1)]
    for want, answers in zip(expected, engine.answers(), strict=True):
        assert not differences(asks, want, answers)


def test_two_ranks_qwen(engines, checkpoint, folder):
    """Qwen2.5-VL with its language model and its encoder on two ranks, two passes."""
    model = checkpoint("qwen2_5_vl")
    asks = [*noise_asks(folder, "qwen2_5_vl"), text_ask()]
    settings = overrides(model, "hiprune", 0.25)
    engine = engines.start(model, [[request(ask) for ask in asks]] * 2, settings, env=TWO_RANKS, tensor_parallel_size=2)
    expected = reference(model, asks, "hiprune", 0.25, exclude="exact")
    for answers in engine.answers():
        assert not differences(asks, expected, answers)
