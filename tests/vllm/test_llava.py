"""The demo model served pruned writes what `vtc.patch` writes, token by token, and takes as much room."""

import pytest

from tests.vllm.engines import differences, overrides, request
from tests.vllm.pictures import noise_asks, pair_asks, scene_asks, text_ask
from tests.vllm.reference import reference
from vtc.vllm.capability import table

KEEPS = (0.5, 0.25, 0.1)
BLOCK = 32
FIRST = ("hiprune", "vtc_cls", "divprune")
ROWS = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in table().splitlines()[2:]]
OTHERS = [name for name, cell in ROWS if cell.startswith("yes") and name not in FIRST]


@pytest.mark.parametrize("strategy", FIRST)
def test_three_keeps(engines, demo, folder, strategy):
    """Sixty questions about ten scenes, fifteen about two pictures each, at the server's keep and at two others."""
    asks = scene_asks(folder, scenes=10, each=5) + pair_asks(folder, 15)
    assert len(asks) >= 60
    rounds = [[request(ask, None if keep == 0.25 else keep) for ask in asks] for keep in KEEPS]
    engine = engines.start(demo, rounds, overrides(demo, strategy, 0.25, max_keep=0.5))
    expected = [reference(demo, asks, strategy, keep) for keep in KEEPS]
    for want, answers in zip(expected, engine.answers(), strict=True):
        assert not differences(asks, want, answers)
    lengths = [[w.prompt_tokens for w in want] for want in expected]
    assert all(a > b > c for a, b, c in zip(*lengths, strict=True))
    assert len({tuple(w.ids) for w in expected[1]}) >= 12, "answers too alike to prove anything"


@pytest.mark.parametrize("strategy", OTHERS)
def test_other_strategies(engines, demo, folder, strategy):
    """The rest of the capability table at one keep. `random` draws by the picture's place in vtc.patch: one picture."""
    asks = scene_asks(folder, scenes=4, each=3) + (pair_asks(folder, 3) if strategy != "random" else [])
    engine = engines.start(demo, [[request(ask) for ask in asks]], overrides(demo, strategy, 0.3))
    expected = reference(demo, asks, strategy, 0.3)
    (answers,) = engine.answers()
    assert not differences(asks, expected, answers)
    assert len({tuple(w.ids) for w in expected}) >= 4


def test_mixed_keeps_and_room(engines, demo, folder):
    """Four keeps in one batch, fractions and numbers, one token and all tokens; KV blocks as the lengths make them."""
    asks = scene_asks(folder, scenes=4, each=1)
    keeps = [0.1, 0.25, 0.5, 1.0]
    mixed = [(ask, keep) for ask in asks for keep in keeps]
    odd = [(asks[0], 1), (asks[1], 1.0), (asks[2], 30), (asks[3], 196)]
    rounds = [
        [request(ask, keep) for ask, keep in mixed], [request(ask, keep) for ask, keep in odd],
        *([request(ask, keep) for ask in asks] for keep in (1.0, 0.25)),
    ]  # fmt: skip
    settings = overrides(demo, "hiprune", 0.25, max_keep=1.0)
    engine = engines.start(demo, rounds, settings, enable_prefix_caching=False)
    # Keys as text: 1 is one token, 1.0 is all of them.
    by_keep = {str(keep): reference(demo, asks, "hiprune", keep) for keep in (*keeps, 1, 30, 196)}
    for pairs, got in zip((mixed, odd), engine.answers(), strict=False):
        want = [by_keep[str(keep)][asks.index(ask)] for ask, keep in pairs]
        assert not differences([ask for ask, _ in pairs], want, got)
    for keep, result in zip(("1.0", "0.25"), engine.result()["rounds"][2:], strict=True):
        ends = [(w.prompt_tokens, w.prompt_tokens + len(w.ids)) for w in by_keep[keep]]
        least, most = (sum((pair[i] + BLOCK - 1) // BLOCK for pair in ends) for i in (0, 1))
        assert least <= result["peak_blocks"] <= most
    assert len({by_keep[keep][0].prompt_tokens for keep in by_keep}) == 6  # 196 tokens are all of them


@pytest.mark.parametrize("strategy", ["hiprune", "visionzip"])
def test_siglip(engines, checkpoint, folder, strategy):
    """A tower without [CLS] under another language model, one to three pictures, text alone."""
    model, asks = checkpoint("llava_siglip"), [*noise_asks(folder, "llava_siglip"), text_ask()]
    engine = engines.start(model, [[request(ask) for ask in asks]], overrides(model, strategy, 0.25))
    expected = reference(model, asks, strategy, 0.25)
    (answers,) = engine.answers()
    assert not differences(asks, expected, answers)
    assert len({tuple(w.ids) for w in expected}) >= 12
