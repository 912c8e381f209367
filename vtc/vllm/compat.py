"""Where vLLM has a switch for its own pruning of videos only, or none: set from here, and dropped when it has one."""

import functools

from vllm.model_executor.models.interfaces import supports_multimodal_pruning
from vllm.platforms import current_platform
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

_SWITCH = "is_multimodal_pruning_enabled"

waiting_allowed = gpu_sync_allowed
"""A context in which the host may wait for the device, for vLLM's check that nothing does."""


def recompute_positions(vllm_config) -> None:
    """Has this worker's runner call `recompute_mrope_positions`.

    Runners ask the multimodal config whether a model thins its embeddings, and the config knows of
    `--video-pruning-rate` only; so its answer is set on this worker's own copy.
    """
    setattr(vllm_config.model_config.multimodal_config, _SWITCH, functools.partial(bool, True))
    if current_platform.is_cpu():
        _cpu_runner_asks()


def _cpu_runner_asks() -> None:
    """The CPU runner loads models by itself and never asks; so its switch becomes a property that does."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if _SWITCH in vars(CPUModelRunner):
        return

    def asked(runner) -> bool:
        config, model = runner.model_config.multimodal_config, getattr(runner, "model", None)
        loaded = model is not None and config is not None
        return loaded and supports_multimodal_pruning(model) and getattr(config, _SWITCH)()

    # What the runner writes itself is the same answer, or the constant of its constructor.
    setattr(CPUModelRunner, _SWITCH, property(asked, lambda runner, value: None))
