"""The selection methods: one file each, pure tensor functions, registered by name in `METHODS`.

The package is also the public call `vtc.strategies()`: the names of the shipped strategies.
"""

import sys
import types

from vtc.registry import Registry

METHODS: Registry = Registry("method", "vtc.strategies")


class _CallablePackage(types.ModuleType):
    def __call__(self) -> list[str]:
        """Names of the strategies that come with vtc."""
        from vtc.catalog import strategies

        return strategies()


sys.modules[__name__].__class__ = _CallablePackage
