"""Models that are split over processes: which of them can be patched, and over which ranks the heads are split."""

from collections.abc import Iterable

from torch import nn

from vtc.core.errors import UnsupportedError

# Class names of what splits a model in other ways than by heads, and of what does it.
_SPLITTERS = {
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP",
    "PipelineIdentityLayer": "transformers' pipeline parallelism",
    "DeepSpeedEngine": "DeepSpeed",
    "InferenceEngine": "DeepSpeed",
}


def refuse_other_splits(model: nn.Module) -> None:
    """Raises UnsupportedError for a model whose weights are spread over processes layer by layer or in slices that only
    its own forward puts together (FSDP, DeepSpeed ZeRO-3, pipelines of processes)."""
    found = next(
        (_SPLITTERS[c.__name__] for m in model.modules() for c in type(m).__mro__ if c.__name__ in _SPLITTERS), ""
    )
    if not found and any(hasattr(p, "ds_id") for p in model.parameters()):
        found = "DeepSpeed ZeRO-3"
    if found:
        raise UnsupportedError(
            f"{type(model).__name__} is split over processes by {found}, and its parts do not run without that; "
            'possible: a whole model in each process, tp_plan="auto", or device_map="auto"'
        )


def head_group(modules: Iterable[nn.Module]) -> object | None:
    """The process group over which weights of attention modules are split (tensor parallelism), or None."""
    for parameter in (p for module in modules for p in module.parameters()):
        for axis, placement in enumerate(getattr(parameter, "placements", ())):
            if placement.is_shard():
                return parameter.device_mesh.get_group(axis)
    return None
