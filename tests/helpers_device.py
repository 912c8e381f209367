"""A device that is not there: tensors say "meta", hold CPU memory, and every wait of the host for them is written down.

On a GPU the host runs ahead and queues work. It waits for all that is queued when it reads a value (`.item()`,
`bool()`, `.tolist()`, `.cpu()`), when an operation's result has a shape that depends on values (`nonzero`, boolean
indexing), and when it copies to the device without `non_blocking`, as `torch.tensor(..., device=...)` does too. Here
these are computed all the same, and noted with the line of code that asked for them.
"""

import functools
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vtc.patching import find_family

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("meta")
WAITS = (
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2",
    "unique_consecutive", "_assert_scalar", "bincount", "repeat_interleave",
)  # fmt: skip


class DeviceTensor(Tensor):
    """A tensor that claims to be on DEVICE; `held` has its values."""

    @staticmethod
    def __new__(cls, held: Tensor):
        """Wraps a CPU tensor."""
        out = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        out.held = held
        return out

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        """Attention chooses its backend, and lists and arrays are made, below the level of dispatch."""
        kwargs = kwargs or {}
        if func in (Tensor.tolist, Tensor.numpy):
            return func(args[0].cpu(), *args[1:], **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            return DeviceTensor(func(*tree_map(_held, args), **tree_map(_held, kwargs)))
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the device's context")


class _Made(TorchFunctionMode):
    """Tensors made from values of the host, which torch makes below the level of dispatch."""

    def __init__(self, waits: Counter):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        fresh = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        like = func is Tensor.new_tensor
        if not fresh and not like:
            return func(*args, **kwargs)
        device = kwargs.pop("device", args[0].device if like else None)
        values = tree_map(lambda x: x.item() if isinstance(x, Tensor) else x, args[1] if like else args[0])
        if like:
            kwargs.setdefault("dtype", args[0].dtype)
        made = torch.Tensor.detach(torch.tensor(values, **kwargs)) if like else func(values, *args[1:], **kwargs)
        if device is None or torch.device(device) != DEVICE:
            return made
        self.waits[f"{caller()} {func.__name__}"] += 1
        return DeviceTensor(made)


class Device(TorchDispatchMode):
    """Within its context operations run. waits: how often the host waited, by "file:line operation"."""

    def __init__(self):
        super().__init__()
        self.waits: Counter = Counter()

    def __enter__(self):
        self._made = _Made(self.waits)
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        ours = any(isinstance(x, DeviceTensor) for x in tree_leaves((args, kwargs)))
        wanted = kwargs.get("device")
        target = ours if wanted is None else torch.device(wanted) == DEVICE
        if self._waits(name, args, kwargs, ours, target):
            self.waits[f"{caller()} {name}"] += 1
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if name == "copy_" or name.endswith("_") and not name.endswith("__"):
            return args[0]
        return tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) and target else x, out)

    @staticmethod
    def _waits(name: str, args: tuple, kwargs: dict, ours: bool, target: bool) -> bool:
        if name == "_to_copy":
            return ours != target and not (target and kwargs.get("non_blocking"))
        if name == "copy_":
            there, here = (isinstance(x, DeviceTensor) for x in args[:2])
            return there != here and not (there and (args[2:] or kwargs.get("non_blocking")))
        if name in ("index", "index_put", "index_put_"):
            return ours and any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name == "repeat_interleave":
            return ours and kwargs.get("output_size") is None
        return ours and name in WAITS


def _held(x: object) -> object:
    return x.held if isinstance(x, DeviceTensor) else x


def caller() -> str:
    """The nearest line ("file:line") outside of torch and of the file that asks, where a mode stands."""
    frame = sys._getframe(1)
    mode = frame.f_code.co_filename
    while frame is not None:
        file = frame.f_code.co_filename
        if file != mode and frame.f_globals.get("__name__", "").partition(".")[0] != "torch":
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "?:0"


@functools.cache
def ours(file: str) -> bool:
    """Whether a path, or a "file:line operation", is of the library itself, wherever the checkout lies."""
    return any(Path(file).resolve().is_relative_to(ROOT / folder) for folder in ("vtc", "patches"))


def is_masked(model: nn.Module, inputs: dict) -> bool:
    """Whether generate() gives the language model a mask at prefill (older versions do with a mask of ones, too)."""
    seen = []
    handle = find_family(model).language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("attention_mask") is not None), with_kwargs=True
    )
    try:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    finally:
        handle.remove()
    return seen[0]


def to_device(model: nn.Module) -> nn.Module:
    """Puts parameters and buffers of a model on the device, in place."""
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(DeviceTensor(value.detach()), requires_grad=False)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = DeviceTensor(value)
    return model


def on_device(inputs: dict) -> dict:
    """A batch's tensors on the device."""
    return {k: DeviceTensor(v) if isinstance(v, Tensor) else v for k, v in inputs.items()}
