"""Linear attention in float64: transformers computes Gated DeltaNet in float32 whatever the model's type, which would
hide what is wrong by less than 1e-5 from tests that are exact otherwise.

Its own module runs, with every conversion to float32 inside it made one to float64. `stock()` undoes this.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vtc.patches import available

HYBRID = {"qwen3_5": "Qwen3_5GatedDeltaNet", "qwen3_5_moe": "Qwen3_5MoeGatedDeltaNet"}


class _Doubled(TorchFunctionMode):
    """`x.float()` and `x.to(torch.float32)` give float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.float:
            return args[0].double()
        if func is Tensor.to:
            args = tuple(torch.float64 if x is torch.float32 else x for x in args)
        return func(*args, **(kwargs or {}))


def _classes() -> list[type[nn.Module]]:
    names = [name for name in HYBRID if available(name)]
    return [
        getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), HYBRID[name]) for name in names
    ]


def _exact(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def in_float64(self, hidden_states: Tensor, *args, **kwargs):
        if hidden_states.dtype != torch.float64:
            return forward(self, hidden_states, *args, **kwargs)
        with _Doubled():
            return forward(self, hidden_states, *args, **kwargs)

    in_float64.stock = forward
    return in_float64


def install() -> None:
    """From now on, models in float64 have their linear attention in float64, in this process."""
    for cls in _classes():
        cls.forward = cls.forward if hasattr(cls.forward, "stock") else _exact(cls.forward)


@contextmanager
def stock() -> Iterator[None]:
    """transformers' own module, in float32."""
    for cls in _classes():
        cls.forward = cls.forward.stock
    try:
        yield
    finally:
        install()
