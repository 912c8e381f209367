"""Knobs of methods: values from YAML, Python or the command line checked against a dataclass's type hints."""

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping

from vtc.core.errors import ConfigError, shown
from vtc.core.registry import unknown
from vtc.io.plain_yaml import parse


def known_keys(data: Mapping, possible: Iterable[str], where: str) -> None:
    """Raises ConfigError for the first key of `data` that is not possible."""
    for key in data:
        if key not in possible:
            raise ConfigError(unknown(f"key in {where}", key, sorted(possible)))


def knobs_of(method: type) -> list[str]:
    """Names of a method's knobs; raises ConfigError for a class that declares fields but is no dataclass."""
    if "__dataclass_params__" not in vars(method) and {"__init__", "__annotations__"} & set(vars(method)):
        raise ConfigError(f"method {method.__name__} is no dataclass; possible: @dataclass(frozen=True) above it")
    return [f.name for f in dataclasses.fields(method)]


def meanings(method: type) -> dict[str, str]:
    """What each knob of a method means: the list below "Knobs:" in its docstring, each entry `- name: meaning`."""
    doc = inspect.getdoc(method) or ""
    section = re.search(r"^Knobs:\n+((?:[- ] .*(?:\n|$))+)", doc, re.MULTILINE)
    entries = re.findall(r"^- (\w+): (.*(?:\n .*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries if name in knobs_of(method)}


def build_method(method: type, knobs: Mapping) -> object:
    """The method with its knobs checked; raises ConfigError for unknown ones, wrong types and wrong values."""
    hints = typing.get_type_hints(method)
    known_keys(knobs, knobs_of(method), f"method {method.__name__}")
    method_with_knobs = method(**{key: typed(key, value, hints[key]) for key, value in knobs.items()})
    for key in knobs:  # after the method's own ranges, which say more
        if not _finite(getattr(method_with_knobs, key)):
            raise ConfigError(f"{key}={shown(knobs[key])} is out of range; possible: finite numbers")
    return method_with_knobs


def _finite(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return all(math.isfinite(v) for v in values if isinstance(v, float))


def as_lists(value: object) -> object:
    """Tuples as lists, all the way down, as YAML has them."""
    return [as_lists(v) for v in value] if isinstance(value, (tuple, list)) else value


def typed(key: str, value: object, hint: object) -> object:
    """`value` if it has the type of the knob (an int passes for a float, a list for a tuple), else ConfigError."""
    fitted = _fit(value, hint)
    if fitted is not _UNFIT:
        return fitted
    if typing.get_origin(hint) is typing.Literal:
        raise ConfigError(f"{key}={shown(value)} is unknown; possible: {_type_words(hint)}")
    raise ConfigError(f"{key}={shown(value)} has type {type(value).__name__}; possible: {_type_words(hint)}")


_UNFIT = object()


def _fit(value: object, hint: object) -> object:
    """The value in the hinted type, or _UNFIT."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        # An exact match first: 1 is an int where int | float is possible.
        exact = next((value for option in arguments if type(value) is option), _UNFIT)
        fits = (fit for option in arguments if (fit := _fit(value, option)) is not _UNFIT)
        return exact if exact is not _UNFIT else next(fits, _UNFIT)
    if origin is typing.Literal:
        return value if any(type(value) is type(a) and value == a for a in arguments) else _UNFIT
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return _UNFIT
        options = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        items = [_fit(v, option) for v, option in zip(value, options, strict=False)]
        return _UNFIT if len(options) != len(value) or _UNFIT in items else tuple(items)
    if type(value) is hint:
        return value
    try:
        return float(value) if hint is float and type(value) is int else _UNFIT
    except OverflowError:
        return _UNFIT


def _type_words(hint: object) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_words(a) for a in arguments)
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list of {_type_words(arguments[0])}"
        return f"[{', '.join(map(_type_words, arguments))}]"
    return "null" if hint is types.NoneType else hint.__name__


def parse_set(text: str) -> tuple[str, object]:
    """One `--set key=value` of the command line; the value is read as (safe) YAML. Raises ConfigError."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {shown(text)} is no override; possible: KEY=VALUE, such as alpha=0.2")
    return key.strip(), parse(value, f"--set {shown(text)}: the value")
