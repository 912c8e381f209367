"""Which implementation of a kernel runs: the torch reference or Triton, chosen by device, or forced by one switch."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

CHOICES = ("auto", "reference", "triton")
VARIABLE, TUNING = "VTC_KERNELS", "VTC_AUTOTUNE"
INSTALLED = importlib.util.find_spec("triton") is not None
_FORCED: ContextVar[str | None] = ContextVar("vtc_kernels", default=None)


def check(choice: str) -> str:
    """Returns `choice`; raises ValueError unless it is auto, reference or triton."""
    if choice not in CHOICES:
        raise ValueError(f"kernels={choice!r} is unknown; possible: {', '.join(CHOICES)}")
    return choice


@torch.compiler.assume_constant_result
def choice() -> str:
    """The requested implementation: by `use`, else by the environment variable VTC_KERNELS, else "auto"."""
    return check(_FORCED.get() or os.environ.get(VARIABLE) or "auto")


@contextmanager
def use(kernels: str) -> Iterator[None]:
    """Within this context (this thread and what it starts in the same context) one implementation is forced.

    "reference": torch on every device. "triton": Triton everywhere, which on the CPU needs its interpreter
    (TRITON_INTERPRET=1 before Triton is imported). "auto": Triton on CUDA tensors where it is installed, else torch.
    """
    token = _FORCED.set(check(kernels))
    try:
        yield
    finally:
        _FORCED.reset(token)


def interpreted() -> bool:
    """Whether Triton runs in its interpreter, on CPU tensors too (TRITON_INTERPRET=1, read when Triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def space(configs: list) -> list:
    """The autotuner's configurations of a kernel: all of them, or the first alone in the interpreter and with
    VTC_AUTOTUNE=0, which makes results independent of timings to the last bit."""
    return configs[:1] if interpreted() or os.environ.get(TUNING) == "0" else configs


def triton_wanted(*tensors: Tensor | None) -> bool:
    """Whether Triton should process these tensors (None is skipped). float64 always uses the reference.

    Raises RuntimeError where Triton is forced and cannot run.
    """
    given = [x for x in tensors if x is not None]
    requested = choice()
    if requested == "reference" or any(x.dtype == torch.float64 for x in given):
        return False
    on_gpu = all(x.device.type == "cuda" for x in given)
    if requested == "auto":
        return on_gpu and INSTALLED
    if not INSTALLED:
        raise RuntimeError("kernels='triton' is forced and Triton is not installed; possible: auto, reference")
    if not on_gpu and not interpreted():
        devices = ", ".join(sorted({x.device.type for x in given}))
        raise RuntimeError(
            f"kernels='triton' is forced on {devices} tensors; possible: CUDA tensors, or TRITON_INTERPRET=1"
        )
    return True
