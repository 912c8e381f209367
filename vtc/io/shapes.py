"""What data that was read must look like: shapes that are put together and raise one line naming the place that is off.

A shape is called with a value and the name of its place, and returns the value or what it stands for.
"""

from collections.abc import Callable, Mapping

from vtc.core.errors import ConfigError, shown

Shape = Callable[[object, str], object]
LARGEST = 1e30  # sums of squares of such numbers can still be taken
LONGEST = 200  # characters of a name


def wrong(where: str, value: object, possible: str) -> ConfigError:
    """The error of a value, which is cut in its message."""
    return ConfigError(f"{where or 'it'}={shown(value)}; possible: {possible}")


def below(where: str, key: object) -> str:
    """The name of a place in a mapping."""
    named = str(key)[:LONGEST]
    return f"{where} {named}" if where.endswith(":") else f"{where}.{named}" if where else named


def anything(value: object, where: str) -> object:
    """Whatever it is."""
    return value


def text(value: object, where: str) -> str:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise wrong(where, value, "text")
    return value


def name(value: object, where: str) -> str:
    """A text that can be part of a file's name."""
    if not isinstance(value, str) or not value.isprintable() or "/" in value or not 0 < len(value) <= LONGEST:
        raise wrong(where, value, f"a name of at most {LONGEST} characters without control characters and /")
    return value


def flag(value: object, where: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise wrong(where, value, "true or false")
    return value


def number(least: float = -LARGEST, most: float = LARGEST, possible: str = "") -> Shape:
    """A number in a range, ends included. possible: the range in words, for the message."""

    def check(value: object, where: str) -> int | float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise wrong(where, value, possible or f"a number from {least:g} to {most:g}")
        return value

    return check


def whole(least: int = 0, most: int = 2**53) -> Shape:
    """A whole number in a range, ends included."""

    def check(value: object, where: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise wrong(where, value, f"a whole number from {least} to {most}")
        return value

    return check


def one_of(*values: object) -> Shape:
    """One of some values."""

    def check(value: object, where: str) -> object:
        if not any(type(value) is type(other) and value == other for other in values):
            raise wrong(where, value, ", ".join(map(repr, values)))
        return value

    return check


def or_none(shape: Shape) -> Shape:
    """A shape, or null."""
    return lambda value, where: None if value is None else shape(value, where)


def list_of(shape: Shape, least: int = 0, most: int | None = None) -> Shape:
    """A list of so many."""

    def check(value: object, where: str) -> list:
        if not isinstance(value, list) or len(value) < least or (most is not None and len(value) > most):
            size = f" of {least} to {most}" if most is not None else f" of {least} or more" * bool(least)
            raise wrong(where, value, f"a list{size}")
        return [shape(item, f"{where}[{i}]") for i, item in enumerate(value)]

    return check


def mapping_of(shape: Shape, keys: Shape = text) -> Shape:
    """A mapping whose keys, too, have a shape."""

    def check(value: object, where: str) -> dict:
        pairs = mapping(value, where, "a mapping")
        return {keys(key, f"a key of {where}"): shape(item, below(where, key)) for key, item in pairs.items()}

    return check


def record(needed: Mapping[str, Shape], more: Mapping[str, Shape] = {}) -> Shape:  # noqa: B006
    """A mapping with the needed keys, and with shapes for others that may be there; any other keys are kept as they
    are."""

    def check(value: object, where: str) -> dict:
        result = dict(mapping(value, where, f"a mapping with {', '.join(needed)}"))
        for key, shape in {**needed, **more}.items():
            if key in result:
                result[key] = shape(result[key], below(where, key))
            elif key in needed:
                raise ConfigError(f"{below(where, key)} is missing; needed: {', '.join(needed)}")
        return result

    return check


def mapping(value: object, where: str, possible: str) -> Mapping:
    """A mapping with texts as keys, whatever its values. possible: what the error says."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise wrong(where, value, possible)
    return value
