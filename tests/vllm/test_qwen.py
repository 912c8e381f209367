"""Qwen2.5-VL and Qwen2-VL served pruned: grids of any shape, positions on three axes, caches, pieces of prompts."""

import pytest

from tests.vllm.engines import differences, overrides, request
from tests.vllm.pictures import IMAGE, noise_asks, text_ask
from tests.vllm.reference import reference

KEEPS = (0.25, 0.5, 0.9)
EXACT = {"hiprune": {"exclude": "exact"}}  # what the plugin makes of `hiprune` here: as many tokens as the budget


def first_image_end(answer: dict) -> int:
    """The place after the first run of a picture's tokens in a prompt."""
    ids = answer["prompt_ids"]
    start = ids.index(IMAGE)
    return next(i for i in range(start, len(ids)) if ids[i] != IMAGE)


def check(engines, model, folder, kind: str, strategy: str, positions: str, keeps: tuple[float, ...]) -> None:
    """Two passes over fourteen prompts at each keep, then new words after the same pictures; and text alone."""
    asks, other = noise_asks(folder, kind), noise_asks(folder, kind, turn=1)
    batches = [(keep, batch) for keep in keeps for batch in ([*asks, text_ask()], asks, other)]
    rounds = [[request(ask, keep) for ask in batch] for keep, batch in batches]
    settings = overrides(model, strategy, keeps[0], max_keep=max(keeps), positions=positions)
    engine = engines.start(model, rounds, settings, enable_prefix_caching=True)
    options = {"positions": positions, **EXACT.get(strategy, {})}
    want = {(k, id(b)): reference(model, b, strategy, k, **options) for k in keeps for b in (asks, other)}
    plain = reference(model, [text_ask()])
    found = engine.answers()
    for number, (keep, batch) in enumerate(batches):
        expected = want[keep, id(other if number % 3 == 2 else asks)] + (plain if number % 3 == 0 else [])
        assert not differences(batch, expected, found[number]), f"{keep}, batch {number % 3}"
    for number in range(1, len(rounds), 3):
        assert any(a["cached_tokens"] for a in found[number]), "nothing was found again"
        whole = [a for a in found[number + 1] if a["cached_tokens"] >= first_image_end(a)]
        assert whole, "no picture lay inside the cached part of a new prompt"
    by_keep = [[tuple(w.ids) for w in want[keep, id(asks)]] for keep in keeps]
    assert len({ids for row in by_keep for ids in row}) > 10 * len(keeps), "answers too alike to prove anything"


@pytest.mark.parametrize(
    "strategy, positions", [("hiprune", "keep"), ("hiprune", "compact"), ("vtc_cls", "keep"), ("divprune", "keep")]
)
def test_qwen2_5(engines, checkpoint, folder, strategy, positions):
    """Five sizes, two upright, one to three pictures a prompt, at three keeps."""
    check(engines, checkpoint("qwen2_5_vl"), folder, "qwen2_5_vl", strategy, positions, KEEPS)


@pytest.mark.parametrize("strategy, positions", [("hiprune", "keep"), ("divprune", "compact")])
def test_qwen2(engines, checkpoint, folder, strategy, positions):
    """The older encoder, without windows; one keep."""
    check(engines, checkpoint("qwen2_vl"), folder, "qwen2_vl", strategy, positions, (0.4,))


def test_mixed_keeps_under_pressure(engines, checkpoint, folder):
    """Keeps as fractions, a number and all tokens in one batch, with too few KV blocks: requests are put back in the
    middle of their answers and computed again, text written so far included."""
    model, keeps = checkpoint("qwen2_5_vl"), [0.25, 0.5, 12, 1.0]
    asks = noise_asks(folder, "qwen2_5_vl", tokens=40)
    settings = overrides(model, "hiprune", 0.25, max_keep=1.0)
    engine = engines.start(
        model, [[request(ask, keeps[i % 4]) for i, ask in enumerate(asks)]] * 2, settings, enable_prefix_caching=False,
        max_model_len=256, num_gpu_blocks_override=16,
    )  # fmt: skip
    want = [reference(model, asks[i::4], "hiprune", keep, exclude="exact") for i, keep in enumerate(keeps)]
    expected = [want[i % 4][i // 4] for i in range(len(asks))]
    for answers in engine.answers():
        assert not differences(asks, expected, answers)
    assert all(found["resumed"] for found in engine.result()["rounds"]), "no request was put back"


@pytest.mark.parametrize("budget, cached", [(16, True), (24, False), (40, True)])
def test_chunks(engines, checkpoint, folder, budget, cached):
    """Prompts computed in pieces that end inside a picture, twice."""
    model, asks = checkpoint("qwen2_5_vl"), noise_asks(folder, "qwen2_5_vl")
    rounds = [[request(ask) for ask in asks], [request(ask, 0.9) for ask in asks]] * 2
    settings = overrides(model, "hiprune", 0.25, max_keep=0.9)
    engine = engines.start(
        model, rounds, settings, max_num_batched_tokens=budget, max_num_seqs=4, enable_prefix_caching=cached
    )
    want = [reference(model, asks, "hiprune", keep, exclude="exact") for keep in (0.25, 0.9)] * 2
    for expected, answers in zip(want, engine.answers(), strict=True):
        assert not differences(asks, expected, answers)
