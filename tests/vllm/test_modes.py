"""As models are really served: compiled, and in bfloat16."""

import shutil

import pytest

from tests.vllm.engines import differences, overrides, request
from tests.vllm.pictures import noise_asks
from tests.vllm.reference import reference

KIND = "qwen2_5_vl"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler, which torch.compile needs on a CPU")
def test_compiled(engines, checkpoint, folder):
    """The language model compiled, with the positions of survivors."""
    model, asks = checkpoint(KIND), noise_asks(folder, KIND)
    settings = overrides(model, "hiprune", 0.25)
    engine = engines.start(model, [[request(ask) for ask in asks]] * 2, settings, enforce_eager=False)
    expected = reference(model, asks, "hiprune", 0.25, exclude="exact")
    for answers in engine.answers():
        assert not differences(asks, expected, answers)


def test_bfloat16(engines, checkpoint, folder):
    """Lengths are exact; rounding may change a token late in an answer, so the first ones are compared, in float32."""
    model, asks = checkpoint(KIND), noise_asks(folder, KIND)
    settings = overrides(model, "hiprune", 0.25)
    engine = engines.start(model, [[request(ask) for ask in asks]], settings, dtype="bfloat16")
    expected = reference(model, asks, "hiprune", 0.25, exclude="exact")
    (answers,) = engine.answers()
    assert [a["prompt_tokens"] for a in answers] == [w.prompt_tokens for w in expected]
    same = [a["ids"][:2] == w.ids[:2] for a, w in zip(answers, expected, strict=True)]
    assert sum(same) >= 12
    assert len({tuple(w.ids[:2]) for w in expected}) >= 8
