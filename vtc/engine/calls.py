"""Reading the arguments of a forward, and noticing its end."""

import inspect
import weakref
from collections.abc import Callable

from torch import nn


def named(module: nn.Module, args: tuple, kwargs: dict) -> dict:
    """The arguments of a forward by name. Callers inside transformers pass all of them by name, which is the fast path.

    The signature is taken from the class, because the instance's forward may be a catch-all wrapper (accelerate).
    """
    if not args:
        return dict(kwargs)
    signature = inspect.signature(type(module).forward)
    given = dict(signature.bind(module, *args, **kwargs).arguments)
    variadic = [name for name in given if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD]
    for name in variadic:
        given.update(given.pop(name))
    given.pop(next(iter(signature.parameters)))
    return given


class Frame(dict):
    """Keyword arguments that a pre-hook passes to a forward, which alone refers to them: they are freed when it ends.

    Hooks cannot be relied on for this: none runs after a KeyboardInterrupt, nor, in compiled code, after any exception.
    at_end: called when the frame is freed, however the forward ended; it must not hold a reference to the frame.
    """

    def __init__(self, kwargs: dict, at_end: Callable[[], None]):
        super().__init__(kwargs)
        weakref.finalize(self, at_end).atexit = False
