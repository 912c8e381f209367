"""The selection methods: one file each, pure tensor functions, registered by name in `METHODS`.

The package is also the public call `vtc.strategies()`: the names of the strategies (YAML) that come with vtc, and of
methods registered from outside.
"""

import sys
import types
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from vtc.core.registry import FORMER, Registry


def _bases() -> tuple[type, ...]:
    from vtc.strategies.base import AttentionStage, DecoderStage, EncoderStage, Stage

    return Stage, DecoderStage, EncoderStage, AttentionStage


METHODS: Registry = Registry("method", "vtc.strategies", "vtc.strategies", _bases, lambda: {*shipped(), *FORMER})


def shipped() -> dict[str, Traversable]:
    """The strategies that come with vtc: name -> YAML file, sorted by name."""
    folder = (files("vtc.configs") / "strategies").iterdir()
    return {f.name.removesuffix(".yaml"): f for f in sorted(folder, key=lambda f: f.name) if f.name.endswith(".yaml")}


def available() -> dict[str, Traversable | Path | Mapping | None]:
    """`shipped`, and the `strategy` of each method that was registered from outside."""
    return shipped() | {name: METHODS[name].strategy for name in METHODS.outside()}


class CallablePackage(types.ModuleType):
    """Makes this package callable."""

    def __call__(self) -> list[str]:
        """Names of the strategies that come with vtc, then of the methods that were registered from outside."""
        return list(available())


sys.modules[__name__].__class__ = CallablePackage
