"""The peak of what torch allocates while a function runs."""

import weakref
from collections.abc import Callable, Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Count(TorchDispatchMode):
    """Follows every new storage until it is freed; those of `existing` are not new."""

    def __init__(self, existing: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.current = self.peak = 0
        self.known: set[int] = {x.untyped_storage().data_ptr() for x in existing}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        if key in self.known or size == 0:
            return
        self.known.add(key)
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.current -= size


def peak_bytes(run: Callable[[], object], device: torch.device, existing: Iterable[torch.Tensor] = ()) -> int:
    """The most bytes that `run` has allocated at once on top of what exists already: counted by torch on CUDA,
    otherwise tensor by tensor.

    existing: weights and inputs, whose views would otherwise be counted as new on a CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Count(existing) as count:
        run()
    return count.peak
