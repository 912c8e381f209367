"""What the checks share: one image through the engine's own quotas, stage and joining, without any model."""

from types import SimpleNamespace

import torch
from torch import Tensor

from vtc.config.strategy import StrategyConfig
from vtc.core.layout import ImageLayout, VisionRun
from vtc.core.signals import Encoder, Signal
from vtc.engine.state import ThreadState
from vtc.engine.vision import Vision


def kept_offsets(
    strategy: StrategyConfig, encoder: Encoder, layout: ImageLayout, scores: dict[Signal, list[Tensor]]
) -> Tensor:
    """Places in the image's run of tokens that a strategy keeps, ascending.

    scores: for each signal that the strategy asks for, a tensor [patches] per crop.
    """
    (stage,), budget = strategy.stages, strategy.allocate().projector
    assert set(stage.stage.needs(encoder)) == set(scores)
    signals = {signal: [[crops[t.crop][t.patches] for t in layout.tiles]] for signal, crops in scores.items()}
    run = VisionRun(images=[layout], signals=signals)
    vision = Vision(SimpleNamespace(encoder=encoder), (), ThreadState())
    (kept,) = vision.select(stage, budget, [[0]], [0], run, no_features, no_text, torch.device("cpu"))
    return kept.offsets


def no_features(image: int) -> Tensor:
    """For methods that rank by attention alone."""
    raise AssertionError("this method was not expected to look at features")


def no_text(signal: Signal, prompt: int) -> Tensor:
    """For methods that do not read the question."""
    raise AssertionError("this method was not expected to read the question")


def assert_scores(actual: Tensor, expected: Tensor) -> None:
    """Equal within a relative 1e-4."""
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=1e-4, atol=0)
