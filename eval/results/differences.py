"""The differences between two records."""

from collections.abc import Iterator, Mapping


def differences(old: Mapping, new: Mapping, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    """(key, old value, new value) of every entry that differs, sorted by key; nested keys are written as `a.b`, and a
    missing value is None."""
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
