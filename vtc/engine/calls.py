"""Reading the arguments of a forward."""

import inspect

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
