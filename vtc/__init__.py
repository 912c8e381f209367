"""vtc: training-free visual-token selection for stock Hugging Face vision-language models.

vtc.patch(model, "hiprune", keep=0.25)   # the model's own generate() now runs on a quarter of the visual tokens
print(vtc.report(model))                 # proof: tokens, KV cache, FLOPs of the last call
vtc.unpatch(model)
"""

from typing import TYPE_CHECKING

from vtc.core.errors import ConfigError, PatchError, UnsupportedError, VtcError

if TYPE_CHECKING:
    from vtc.config.catalog import families, load_strategy
    from vtc.drafting import draft
    from vtc.eval.inspect import inspect
    from vtc.patching import patch, patched, report, unpatch
    from vtc.strategies import CallablePackage

    strategies: CallablePackage

__version__ = "0.1.0"
__all__ = [
    "ConfigError", "PatchError", "UnsupportedError", "VtcError",
    "draft", "families", "inspect", "load_strategy", "patch", "patched", "report", "strategies", "unpatch",
]  # fmt: skip

_LAZY = {
    "patch": "vtc.patching", "unpatch": "vtc.patching", "patched": "vtc.patching", "report": "vtc.patching",
    "draft": "vtc.drafting", "families": "vtc.config.catalog", "load_strategy": "vtc.config.catalog",
    "inspect": "vtc.eval.inspect",
}  # fmt: skip


if not TYPE_CHECKING:  # to a type checker, a name that is not above is an error

    def __getattr__(name: str):
        # Lazy, so that `import vtc` costs nothing and `vtc list` needs no model code.
        if name in _LAZY:
            import importlib

            return getattr(importlib.import_module(_LAZY[name]), name)
        if name == "strategies":
            import vtc.strategies

            return vtc.strategies
        raise AttributeError(f"module 'vtc' has no attribute {name!r}")
