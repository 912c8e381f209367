"""Model families: where the sites are in each, how its signals are gathered. One family a file."""

from vtc.core.registry import Registry


def _bases() -> tuple[type, ...]:
    from vtc.patches._family import Family

    return (Family,)


FAMILIES: Registry = Registry("family", "vtc.patches", "vtc.families", _bases)


def available(name: str) -> bool:
    """Whether the installed transformers has the classes of a family; see `Family.since`."""
    import transformers
    from packaging.version import Version

    since = FAMILIES[name].since
    return since is None or Version(transformers.__version__) >= Version(since)
