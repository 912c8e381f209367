"""The processes that share an evaluation: one, or those of `accelerate launch` (or torchrun).

On a machine without a GPU accelerate starts one process, whatever --num_processes says, unless --multi_gpu is given.
"""

import os
from datetime import timedelta

PATIENCE = timedelta(days=30)  # how long a finished process waits for the slowest


class Processes:
    """This process among the `world` processes with the same output folder, which all machines must share.

    The processes communicate only in `share` and `meet`, not while samples are answered. Raises what torch.distributed
    raises if the processes cannot connect.
    """

    def __init__(self):
        self.rank, self.world, self.local = 0, 1, 0
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch
            from accelerate import PartialState

            # gloo: only small objects are exchanged, and it waits without using a GPU.
            state = PartialState(cpu=not torch.cuda.is_available(), backend="gloo", timeout=PATIENCE)
            self.rank, self.world, self.local = (
                state.process_index, state.num_processes, state.local_process_index
            )  # fmt: skip

    @property
    def first(self) -> bool:
        """Whether this is the process that writes results and prints."""
        return self.rank == 0

    def device(self, requested: str | None) -> str | None:
        """The device for this process: `cuda` becomes the GPU of its local rank."""
        if self.world == 1 or requested not in (None, "cuda"):
            return requested
        import torch

        return f"cuda:{self.local}" if torch.cuda.is_available() else requested

    def share(self, value: object = None) -> object:
        """Waits for all processes; returns the value of the first."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def meet(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def close(self) -> None:
        """Leaves the process group."""
        if self.world > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()
