"""The selection methods: one file each, pure tensor functions, registered by name in `METHODS`.

The package is also the public call `vtc.strategies()`: the names of the strategies (YAML) that come with vtc.
"""

import sys
import types
from importlib.resources import files
from importlib.resources.abc import Traversable

from vtc.registry import Registry

METHODS: Registry = Registry("method", "vtc.strategies")


def shipped() -> dict[str, Traversable]:
    """The strategies that come with vtc: name -> YAML file, by name."""
    found = (files("vtc.configs") / "strategies").iterdir()
    return {f.name.removesuffix(".yaml"): f for f in sorted(found, key=lambda f: f.name) if f.name.endswith(".yaml")}


class CallablePackage(types.ModuleType):
    """This package, which can be called."""

    def __call__(self) -> list[str]:
        """Names of the strategies that come with vtc."""
        return list(shipped())


sys.modules[__name__].__class__ = CallablePackage
