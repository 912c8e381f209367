"""Patchwork: hooks and attributes put on a model, recorded, and taken off again in reverse order."""

from collections.abc import Callable

from torch import nn

_MISSING = object()


class Stop(Exception):
    """Raised in a recording function to leave a module early, by a caller that catches it."""


class Patchwork:
    """Keeps what was changed on live objects so that `undo` restores exactly the objects that were there."""

    def __init__(self):
        self._undo: list[Callable[[], None]] = []

    def pre_hook(self, module: nn.Module, hook: Callable) -> None:
        """Forward pre-hook with keyword arguments: hook(module, args, kwargs) -> None or (args, kwargs)."""
        self._undo.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def post_hook(self, module: nn.Module, hook: Callable, always: bool = False) -> None:
        """Forward hook with keyword arguments; `always` runs it also when the forward raised."""
        handle = module.register_forward_hook(hook, with_kwargs=True, always_call=always)
        self._undo.append(handle.remove)

    def attribute(self, target: object, name: str, value: object) -> None:
        """Sets an instance attribute; undoing puts back the instance's own object, or removes it if it had none."""
        before = vars(target).get(name, _MISSING)
        setattr(target, name, value)

        def restore():
            if before is _MISSING:
                delattr(target, name)
            else:
                setattr(target, name, before)

        self._undo.append(restore)

    def undo(self) -> None:
        """Takes everything off, last change first; safe to call twice."""
        while self._undo:
            self._undo.pop()()
