"""Wall-clock seconds of the patch's own work; exact on a GPU only on request, since that needs a synchronisation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_EXACT: ContextVar[bool] = ContextVar("vtc_exact_clock", default=False)


@contextmanager
def exact() -> Iterator[None]:
    """Within this context `now` waits for the device, so that time differences cover finished work."""
    token = _EXACT.set(True)
    try:
        yield
    finally:
        _EXACT.reset(token)


def now() -> float:
    """Seconds of a monotonic clock."""
    if _EXACT.get() and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
