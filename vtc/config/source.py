"""Where strategies come from: names, YAML files, mappings, methods themselves, and several of these composed."""

import inspect
import os.path
import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

from vtc.config.knobs import knobs_of
from vtc.core.errors import ConfigError, shown
from vtc.core.registry import unknown
from vtc.io.plain_yaml import load
from vtc.strategies import METHODS, known, shipped

TOP = ("description", "keep", "prune_ratio", "scope", "rounding", "positions", "stages", "families")


def parts(strategy: object) -> list:
    """The strategies that one argument composes: the entries of a list, or of "a+b"; else itself alone."""
    if isinstance(strategy, str) and "+" in strategy and not os.path.exists(strategy):
        return [part.strip() for part in strategy.split("+")]
    if isinstance(strategy, Sequence) and not isinstance(strategy, (str, bytes)):
        if not strategy:
            raise ConfigError("strategy [] is empty; possible: a name, a YAML file, a mapping, or a list of these")
        return list(strategy)
    return [strategy]


def read(strategy: object) -> tuple[str, dict]:
    """A strategy's name and raw data, from a name, a YAML file's path, a mapping, or a method (an instance, a class,
    or MODULE:CLASS).

    YAML is loaded safely. Raises ConfigError in one line for an unknown name, a missing file or invalid YAML.
    """
    if isinstance(strategy, Mapping):
        return "inline", dict(strategy)
    if not isinstance(strategy, (str, Path)):
        return _method(strategy)
    name, path = str(strategy), Path(strategy)
    if name in shipped():
        return name, _loaded(shipped()[name], f"strategy {name!r}")
    if path.suffix in (".yaml", ".yml"):
        return path.stem, _loaded(path, f"strategy file {shown(name)}")
    if (broken := METHODS.broken(name)) is not None:
        raise ConfigError(broken)
    if name in known() or re.fullmatch(r"[\w.]+:[\w.]+", name):
        return name, _brought(name, METHODS[name].strategy)
    raise ConfigError(unknown("strategy", name, [*known(), "FILE.yaml"]))


def _loaded(file: Traversable | Path, what: str) -> dict:
    return _mapping(load(file, what, f"a file, or {', '.join(known())}"), what)


def _mapping(raw: object, what: str) -> dict:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{what} holds {type(raw).__name__}; possible: a mapping with {', '.join(TOP)}")
    return dict(raw)


def _brought(name: str, strategy: object) -> dict:
    """What the `strategy` of a method says, completed by the method itself and the first line of its docstring."""
    what = f"the strategy of method {shown(name)}"
    if isinstance(strategy, (Path, Traversable)):
        strategy = _loaded(strategy, what)
    about = (inspect.getdoc(METHODS[name]) or "").partition("\n")[0]
    return {"description": about, "stages": [{"method": name}]} | _mapping({} if strategy is None else strategy, what)


def _method(given: object) -> tuple[str, dict]:
    """The strategy of a method's class, or of an instance with its knobs."""
    kind = given if isinstance(given, type) else type(given)
    try:
        name = METHODS.name_of(kind)
    except ConfigError as error:
        if isinstance(given, type):
            raise
        raise ConfigError(
            f"strategy has type {kind.__name__}; possible: a name, a YAML file, a mapping, a method"
        ) from error
    raw = _brought(name, kind.strategy)
    if given is not kind:
        knobs = {knob: getattr(given, knob) for knob in knobs_of(kind)}
        raw = {key: value for key, value in raw.items() if key != "families"} | {"stages": [{"method": name, **knobs}]}
    return name, raw
