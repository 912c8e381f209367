"""Where two records differ."""

from collections.abc import Iterator, Mapping


def differences(old: Mapping, new: Mapping, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """(place, value there, value here) of every entry that is not equal, places within mappings as `a.b`, sorted; None
    for what one of them lacks."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
