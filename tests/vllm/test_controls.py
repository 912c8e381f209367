"""The comparisons notice what they are there for: with a fault put in on purpose, answers are not those of HF."""

from tests.vllm.engines import TWO_RANKS, differences, overrides, request
from tests.vllm.pictures import noise_asks, scene_asks
from tests.vllm.reference import reference


def test_caches_that_forget_the_keep(engines, demo, folder):
    """Keys without a request's arguments and without the settings: a picture is served as it was first kept."""
    asks, keeps = scene_asks(folder, 4, 2), (0.25, 0.5, 0.1)
    rounds = [[request(ask, keep) for ask in asks] for keep in keeps]
    settings = overrides(demo, "hiprune", 0.25, max_keep=0.5)
    engine = engines.start(demo, rounds, settings, controls="plain_hash")
    want = [reference(demo, asks, "hiprune", keep) for keep in keeps]
    first, *others = engine.answers()
    assert not differences(asks, want[0], first)
    for expected, answers in zip(want[1:], others, strict=True):
        assert len(differences(asks, expected, answers)) == len(asks)
        assert [a["prompt_tokens"] for a in answers] == [w.prompt_tokens for w in want[0]]


def test_ranks_that_do_not_agree(engines, checkpoint, folder):
    """Two ranks that choose by their own heads keep different tokens, in silence: as many, but the text is another."""
    model, asks = checkpoint("qwen2_5_vl"), noise_asks(folder, "qwen2_5_vl")
    settings = overrides(model, "hiprune", 0.25)
    engine = engines.start(
        model, [[request(ask) for ask in asks]], settings, env=TWO_RANKS, controls="no_all_reduce",
        tensor_parallel_size=2,
    )  # fmt: skip
    expected = reference(model, asks, "hiprune", 0.25, exclude="exact")
    (answers,) = engine.answers()
    assert [a["prompt_tokens"] for a in answers] == [w.prompt_tokens for w in expected]
    assert len(differences(asks, expected, answers)) >= len(asks) // 2
