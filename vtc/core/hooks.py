"""Patchwork: hooks and attributes set on a model, recorded, and removed again in reverse order."""

import sys
from collections.abc import Callable

import torch
from torch import nn

MISSING = object()


def let_compiled_see_hooks() -> None:
    """Makes torch.compile check a module's hooks before it runs compiled code, and discards all compiled code.

    By default it assumes that hooks never change: code compiled before a hook was added would run without it, and code
    compiled for a module without hooks would serve one with hooks. If nothing was compiled, only the setting of
    torch._dynamo changes."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return
    dynamo.config.skip_nnmodule_hook_guards = False
    if dynamo.utils.counters["frames"]["total"]:
        torch.compiler.reset()


class Stop(Exception):
    """Raised in a recording function to leave a module early, by a caller that catches it."""


class Patchwork:
    """Records every change to live objects, so that `undo` restores exactly what was there before.

    Hooks are excluded from torch.compile's tracing, because their control flow depends on values.

    hooks: the numbers of the hooks that were added; replaced: target, name and previous value of each attribute,
    MISSING where there was none.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self.hooks: dict[nn.Module, set[int]] = {}
        self.replaced: list[tuple[object, str, object]] = []

    def pre_hook(self, module: nn.Module, hook: Callable) -> None:
        """Forward pre-hook with keyword arguments: hook(module, args, kwargs) -> None or (args, kwargs)."""
        self._added(module, module.register_forward_pre_hook(torch.compiler.disable(hook), with_kwargs=True))

    def post_hook(self, module: nn.Module, hook: Callable, always: bool = False, first: bool = False) -> None:
        """Forward hook with keyword arguments; `always`: also run it if the forward raised; `first`: run it before
        the existing hooks, which then see its return value."""
        hook = torch.compiler.disable(hook)
        handle = module.register_forward_hook(hook, with_kwargs=True, always_call=always, prepend=first)
        self._added(module, handle)

    def _added(self, module: nn.Module, handle) -> None:
        self.hooks.setdefault(module, set()).add(handle.id)
        self._undo.append(handle.remove)

    def method(self, target: object, name: str, wrapper: Callable) -> None:
        """Replaces a method by a wrapper. The wrapper itself is not traced by torch.compile; what it calls may be."""
        self.attribute(target, name, torch.compiler.disable(wrapper, recursive=False))

    def attribute(self, target: object, name: str, value: object) -> None:
        """Sets an instance attribute; undoing restores the instance's previous value, or removes the attribute."""
        before = vars(target).get(name, MISSING)
        setattr(target, name, value)
        self.replaced.append((target, name, before))

        def restore():
            if before is MISSING:
                delattr(target, name)
            else:
                setattr(target, name, before)

        self._undo.append(restore)

    def undo(self) -> None:
        """Undoes all changes, the last one first; safe to call twice."""
        while self._undo:
            self._undo.pop()()
        self.hooks, self.replaced = {}, []
