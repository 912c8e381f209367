"""Switches that vLLM has only for its own pruning of videos, or not at all; to be dropped once it has them."""

import functools

from vllm.model_executor.models.interfaces import supports_multimodal_pruning
from vllm.platforms import current_platform
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

_SWITCH = "is_multimodal_pruning_enabled"

waiting_allowed = gpu_sync_allowed
"""A context in which the host may wait for the device, for vLLM's check that nothing does."""


def recompute_positions(vllm_config) -> None:
    """Has this worker's runner call `recompute_mrope_positions`.

    Runners ask the multimodal config whether a model prunes its embeddings, and the config knows only of
    `--video-pruning-rate`; so its answer is set on this worker's own copy.
    """
    setattr(vllm_config.model_config.multimodal_config, _SWITCH, functools.partial(bool, True))
    if current_platform.is_cpu():
        _let_cpu_runner_ask()


def _let_cpu_runner_ask() -> None:
    """The CPU runner loads models by itself and never asks the config, so its switch becomes a property that does."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if _SWITCH in vars(CPUModelRunner):
        return

    def enabled(runner) -> bool:
        config, model = runner.model_config.multimodal_config, getattr(runner, "model", None)
        loaded = model is not None and config is not None
        return loaded and supports_multimodal_pruning(model) and getattr(config, _SWITCH)()

    # The runner itself assigns the same answer, or the constant of its constructor.
    setattr(CPUModelRunner, _SWITCH, property(enabled, lambda runner, value: None))
