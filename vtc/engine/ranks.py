"""Tensor parallelism: the ranks over which a language model's heads are split, and what is computed over all of them.

Every rank holds some of the heads and the same hidden states. Scores are reduced over the ranks before anything is
ranked, and all ranks take the choice of the first, because they must drop the same tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vtc.core.errors import PatchError, UnsupportedError
from vtc.core.selection import Selection

# What spreads a model over processes in ways that hooks do not see through, by the names of the classes that show it.
_SPREADERS = {
    "FullyShardedDataParallel": "FSDP1",
    "PipelineIdentityLayer": "transformers' pipeline parallelism",
}
_FSDP2 = "FSDPModule"
Part = TypeVar("Part")


def refuse_spread(model: nn.Module) -> None:
    """Raises UnsupportedError for a model that DeepSpeed ZeRO-3, FSDP1 or a pipeline of processes holds in parts."""
    spreader = next((_SPREADERS[name] for name in _classes(model) if name in _SPREADERS), None)
    if spreader is None and any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        spreader = "DeepSpeed ZeRO-3"
    if spreader is not None:
        raise UnsupportedError(
            f"{type(model).__name__} is spread over processes by {spreader}; possible: a whole model in each process, "
            'from_pretrained with tp_plan="auto" or device_map="auto", or FSDP around a model that is patched before'
        )


def head_group(model: nn.Module, attention: Iterable[nn.Module]) -> object | None:
    """The process group over which the attention modules of a model are split, None if they run whole. Raises
    UnsupportedError for a model split by heads and by FSDP at once."""
    for module in (part for one in attention for part in one.modules()):
        for parameter in module.parameters(recurse=False):
            split = [axis for axis, kind in enumerate(getattr(parameter, "placements", ())) if kind.is_shard()]
            if not split:
                continue
            if _FSDP2 not in _classes(model):
                return parameter.device_mesh.get_group(split[0])
            if len(split) > 1:
                raise UnsupportedError(
                    f"{type(model).__name__} is split by heads and by FSDP at once; possible: one of them"
                )
            return None  # FSDP2 puts the weights together before a layer runs
        mesh = getattr(module, "_hf_device_mesh", None)  # versions of transformers that split into plain tensors
        if mesh is not None and getattr(module, "_hf_tp_plan", None) in ("colwise", "rowwise"):
            return mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")
    return None


def _classes(model: nn.Module) -> set[str]:
    return {base.__name__ for module in model.modules() for base in type(module).__mro__}


@dataclass(frozen=True)
class Ranks:
    """The processes that hold a language model's heads, in order and in equal parts. group: their process group, None
    for a whole model; heads: query heads of the whole model, 0 if unknown."""

    group: object = None
    heads: int = 0

    @property
    def count(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def holding(self, heads: int) -> "Ranks":
        """The ranks over which one attention call with these heads is split. Raises PatchError if its heads are neither
        all nor this rank's part."""
        if heads == self.heads or not self.heads:
            return WHOLE if self.heads else self
        if heads * self.count == self.heads:
            return self
        raise PatchError(
            f"an attention layer ran with {heads} of {self.heads} heads on {self.count} known processes, so its scores "
            'are those of a part; possible: a whole model, or one split by from_pretrained(tp_plan="auto")'
        )

    def total(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, the same to the last bit on all of them."""
        if self.group is None:
            return x
        x = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=self.group)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean over all heads of what is a mean over each rank's own."""
        return x if self.group is None else self.total(x) / self.count

    def joined(self, x: Tensor) -> Tensor:
        """The rows [H, ...] of all heads, in order, of those of each rank's own."""
        if self.group is None:
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.count)]
        dist.all_gather(parts, x.detach().contiguous(), group=self.group)
        return torch.cat(parts)

    def agreed(self, selection: Selection) -> Selection:
        """The first rank's selection, on this rank's device. Ranks could differ where tokens are tied but for rounding:
        kernels are tuned by timings, and sums on a GPU have no fixed order. The host waits for it."""
        if self.group is None:
            return selection
        device, sent = selection.keep.device, [_moved(selection, torch.device("cpu"))]
        dist.broadcast_object_list(sent, src=dist.get_global_rank(self.group, 0), group=self.group)
        return _moved(sent[0], device)


WHOLE = Ranks()


def _moved(part: Part, device: torch.device) -> Part:
    """A selection, or what one consists of, with its tensors on a device."""
    if isinstance(part, Tensor):
        return part.detach().to(device)
    if is_dataclass(part):
        return replace(part, **{field.name: _moved(getattr(part, field.name), device) for field in fields(part)})
    if isinstance(part, tuple):
        return type(part)(*(_moved(entry, device) for entry in part))
    return part
