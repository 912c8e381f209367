"""Prefix cache, encoder cache and processor cache never take an image kept at one budget for another."""

from dataclasses import replace

import pytest

from tests.vllm.engines import Engine, Engines, differences, overrides, request
from tests.vllm.pictures import pair_asks, scene_asks
from tests.vllm.reference import Ask, reference

BLOCK = 32
LONG = "What color is the object seen from the object there? " * 5  # more than a block of text before the picture


def long_asks(asks: list[Ask]) -> list[Ask]:
    """The same prompts with text before their pictures that fills a block of the cache."""
    return [replace(ask, prompt=ask.prompt.replace("USER:", f"USER: {LONG}", 1)) for ask in asks]


def schedule(asks: list[Ask]) -> list[tuple[float, list[dict]]]:
    """Rounds of one keep each, the same pictures at all of them, each keep twice, first alone and then with ids of
    the user for the pictures."""
    named = [[f"picture {file.stem}" for file in ask.images] for ask in asks]
    plain = [(keep, [request(ask, keep) for ask in asks]) for keep in (0.25, 0.5, 0.25, 0.5)]
    ids = [
        (keep, [request(ask, keep, uuids=names) for ask, names in zip(asks, named, strict=True)])
        for keep in (0.25, 0.5, 0.25, 0.5)
    ]
    silent = [(0.25, [request(ask, None, uuids=names) for ask, names in zip(asks, named, strict=True)])]
    return plain + ids + silent


def text_before(ask: Ask, answer: dict) -> int:
    """Tokens of a prompt before its first picture; 4 is the picture's token of the demo model."""
    return answer["prompt_ids"].index(4)


def check_hits(asks: list[Ask], rounds: list[list[dict]]) -> None:
    """At a keep not seen before no more is found than the text before the picture; at one seen before, the picture."""
    for first, second in ((0, 2), (1, 3)):
        for ask, new, again in zip(asks, rounds[first], rounds[second], strict=True):
            before = text_before(ask, new)
            assert new["cached_tokens"] <= before
            whole = (again["prompt_tokens"] - 1) // BLOCK * BLOCK
            assert again["cached_tokens"] == whole > before // BLOCK * BLOCK


def start(engines: Engines, demo, rounds, strategy: str = "hiprune", **engine) -> Engine:
    """The demo model at 0.25, any keep of a request allowed, with the prefix cache on."""
    settings = overrides(demo, strategy, 0.25, max_keep=1.0)
    return engines.start(demo, rounds, settings, enable_prefix_caching=True, **engine)


@pytest.mark.parametrize("gigabytes", [4, 0])
def test_keeps_in_turn(engines, demo, folder, gigabytes):
    """The same pictures at keeps in turn, with and without the processor cache, with and without ids of the user."""
    # No picture starts two prompts: in a round of one keep the second would rightly find the first.
    asks = long_asks(scene_asks(folder, 3, 1)) + scene_asks(folder, 3, 1) + pair_asks(folder, 6)[4:]
    turns = schedule(asks)
    engine = start(engines, demo, [requests for _, requests in turns], mm_processor_cache_gb=gigabytes)
    want = {keep: reference(demo, asks, "hiprune", keep) for keep in (0.25, 0.5)}
    rounds = engine.answers()
    for (keep, _), answers in zip(turns, rounds, strict=True):
        assert not differences(asks, want[keep], answers)
    check_hits(asks, rounds[:4])
    assert {a["cached_tokens"] for a in rounds[1][:3]} == {BLOCK}, "text before the picture is common to all keeps"
    for answers in rounds[6:]:
        assert all(a["cached_tokens"] >= BLOCK for a in answers), "an id of the user is found again"


@pytest.mark.parametrize("strategy", ["hiprune", "vtc_cls", "divprune"])
def test_mixed_batch_twice(engines, demo, folder, strategy):
    """Three keeps and all tokens for each picture in one batch; the second time everything comes from the cache."""
    asks = [ask for ask in scene_asks(folder, 4, 1) + pair_asks(folder, 2) for _ in range(4)]
    keeps = [0.1, 0.25, 0.5, 1.0] * 6
    batch = [request(ask, keep) for ask, keep in zip(asks, keeps, strict=True)]
    engine = start(engines, demo, [batch, batch], strategy)
    want = {keep: reference(demo, asks[::4], strategy, keep) for keep in keeps[:4]}
    expected = [want[keep][i // 4] for i, keep in enumerate(keeps)]
    cold, warm = engine.answers()
    assert not differences(asks, expected, cold)
    assert not differences(asks, expected, warm)
    assert all(a["cached_tokens"] == (a["prompt_tokens"] - 1) // BLOCK * BLOCK for a in warm)
    assert len({tuple(w.ids) for w in expected}) >= 4


@pytest.mark.parametrize(
    "budget, cached, strategy", [(48, True, "hiprune"), (20, False, "vtc_cls"), (40, True, "divprune")]
)
def test_chunks_through_an_image(engines, demo, folder, budget, cached, strategy):
    """A prompt that is computed in pieces, cut in the middle of an image, once more with all of it in the cache."""
    asks = long_asks(scene_asks(folder, 3, 1)) + scene_asks(folder, 2, 1) + pair_asks(folder, 3)
    keeps = (0.25, 0.5)
    rounds = [[request(ask, keep) for ask in asks] for keep in keeps] * 2
    engine = engines.start(
        demo, rounds, overrides(demo, strategy, 0.25, max_keep=0.5), max_num_batched_tokens=budget, max_num_seqs=4,
        enable_prefix_caching=cached,
    )  # fmt: skip
    want = [reference(demo, asks, strategy, keep) for keep in keeps] * 2
    assert all(w.prompt_tokens > budget for w in want[0])
    for expected, answers in zip(want, engine.answers(), strict=True):
        assert not differences(asks, expected, answers)
