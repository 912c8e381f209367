"""Observing attention without eager mode: one module gets a config that names a recording attention function.

The function passes (q, k, v) to `record` and then calls the backend that the model has chosen. Masks are built from the
model's own config, so they do not change; no other layer is affected.

A second function, `rewrite`, is optional: it gets the same q, k and v and the backend's output, and returns the output
that the module continues with.

What `record` returns, if anything, is added to the logits of each key (for merged tokens and padding). SDPA and eager
attention take it as an additive mask of one row, broadcast over heads and queries: no extra memory, but on CUDA SDPA
then chooses its memory-efficient kernel instead of flash attention. Other backends take no mask; there q gets one extra
dimension of ones and k one of bias / scale, padded to a multiple of 8 and removed again: q, k and v are copied once,
and the attention costs (head_dim + 8) / head_dim times as much.
"""

import sys
import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtc.core.hooks import Patchwork
from vtc.kernels.augment import augmented

_PREFIX = "vtc_observed_"


class ObservedConfig:
    """Stands in for one attention module's config: every attribute except the name of the attention function is read
    from the original at the time of access, so that a later change of backend takes effect."""

    def __init__(self, config: object, record: Callable, rewrite: Callable | None = None):
        self.__dict__.update(_original=config, _record=record, _rewrite=rewrite, _backend=threading.local())

    @property
    def _attn_implementation(self) -> str:
        # The backend reads this name too (flash attention loads its kernel by it) and must see its own. All others get
        # a name that contains the original one, because modules look for "flash" in it.
        if getattr(self._backend, "running", False):
            return self._original._attn_implementation
        name = _PREFIX + str(self._original._attn_implementation)
        if name not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(name, _observed_attention)
        return name

    def __getattr__(self, name: str):
        if name in ("_original", "_record", "_rewrite", "_backend"):
            raise AttributeError(name)
        return getattr(self._original, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._original, name, value)


def _observed_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs):
    config, original = module.config, (query, key, value)
    mask, options = args[0] if args else kwargs.get("attention_mask"), dict(kwargs)
    bias = config._record(query, key, kwargs.get("scaling"), kwargs.get("cu_seq_lens_q"), value)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    backend = ALL_ATTENTION_FUNCTIONS.get(config._original._attn_implementation, eager)
    width, takes_mask = value.shape[-1], config._original._attn_implementation in ("sdpa", "eager")
    if bias is not None and takes_mask:
        args, kwargs = _with_row(bias.to(query.device, query.dtype)[:, None, None], args, kwargs)
    elif bias is not None:
        kwargs["scaling"] = query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
        query, key = augmented(query, key, bias, kwargs["scaling"])
        value = F.pad(value, (0, query.shape[-1] - width))
    config._backend.running = True
    try:
        out = backend(module, query, key, value, *args, **kwargs)
        out = out if bias is None or takes_mask else (out[0][..., :width], *out[1:])
    finally:
        config._backend.running = False
    if config._rewrite is None:
        return out
    options["backend"] = config._original._attn_implementation
    return config._rewrite(*original, mask, options, out)


def _with_row(row: Tensor, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments after q, k and v, with `row` [B, 1, 1, N] added to the mask."""
    mask = args[0] if args else kwargs.get("attention_mask")
    if mask is not None:
        row = row + (torch.zeros_like(row).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask)
    return ((row, *args[1:]), kwargs) if args else (args, {**kwargs, "attention_mask": row})


def observe(patchwork: Patchwork, module: nn.Module, record: Callable, rewrite: Callable | None = None) -> None:
    """Calls record(query [B, H, N, D], key [B, Hkv, N, D], scale or None, cu_seqlens or None, value [B, Hkv, N, D]) at
    each attention call of `module`, before the model's own backend runs. Its return value, None or [B, N], is added
    to the logits of the keys.

    rewrite(query, key, value, mask, options, out) is called after the backend and returns the replacement for `out`:
    ([B, N, H, D], weights or None). mask, options: as the module passed them to the backend, whose name is added to
    the options."""
    rewrite = None if rewrite is None else torch.compiler.disable(rewrite)
    patchwork.attribute(module, "config", ObservedConfig(module.config, torch.compiler.disable(record), rewrite))
