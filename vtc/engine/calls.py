"""Reading the arguments of a forward, and noticing its end."""

import inspect
import weakref
from collections.abc import Callable

from torch import nn


def named(module: nn.Module, args: tuple, kwargs: dict) -> dict:
    """The arguments of a forward by name. Callers inside transformers name all of them, which costs nothing here.

    The class's own forward is read, because the instance's may be a wrapper that takes anything (accelerate).
    """
    if not args:
        return dict(kwargs)
    signature = inspect.signature(type(module).forward)
    given = dict(signature.bind(module, *args, **kwargs).arguments)
    rest = [name for name in given if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD]
    for name in rest:
        given.update(given.pop(name))
    given.pop(next(iter(signature.parameters)))
    return given


class Frame(dict):
    """Keyword arguments that a pre-hook hands to a forward, which alone holds them: they go when its frame goes.

    No hook runs after a KeyboardInterrupt, and in compiled code none after any exception. at_end: called when the
    frame is gone, however the forward ended; it must not refer to the frame.
    """

    def __init__(self, kwargs: dict, at_end: Callable[[], None]):
        super().__init__(kwargs)
        weakref.finalize(self, at_end).atexit = False
