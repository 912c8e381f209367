"""Watching attention without eager mode: one module gets a config that names a recording attention function.

The function records what it was asked for from (q, k) and calls the backend that the model has chosen. Masks are
built from the model's own config, so they do not change; no other layer is touched.
"""

import sys
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtc.core.hooks import Patchwork

_PREFIX = "vtc_observed_"


class ObservedConfig:
    """Stands in for one attention module's config: every attribute is the original's, read at the time of asking
    (so a later change of backend is followed), but for the name of the attention function."""

    def __init__(self, config: object, record: Callable):
        self.__dict__.update(_original=config, _record=record, _backend=threading.local())

    @property
    def _attn_implementation(self) -> str:
        # The backend itself reads this name too (flash attention loads its kernel by it) and must see its own. For
        # everybody else the original name stays inside ours, because modules look for "flash" in it.
        if getattr(self._backend, "running", False):
            return self._original._attn_implementation
        name = _PREFIX + str(self._original._attn_implementation)
        if name not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(name, _observed_attention)
        return name

    def __getattr__(self, name: str):
        if name in ("_original", "_record", "_backend"):
            raise AttributeError(name)
        return getattr(self._original, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._original, name, value)


def _observed_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs):
    config = module.config
    config._record(query, key, kwargs.get("scaling"), kwargs.get("cu_seq_lens_q"))
    eager = sys.modules[type(module).__module__].eager_attention_forward
    backend = ALL_ATTENTION_FUNCTIONS.get(config._original._attn_implementation, eager)
    config._backend.running = True
    try:
        return backend(module, query, key, value, *args, **kwargs)
    finally:
        config._backend.running = False


def observe(patchwork: Patchwork, module: nn.Module, record: Callable) -> None:
    """Calls record(query [B, H, N, D], key [B, Hkv, N, D], scale or None, cu_seqlens or None) at each attention call
    of `module`, before the model's own backend runs."""
    patchwork.attribute(module, "config", ObservedConfig(module.config, torch.compiler.disable(record)))
