"""Where strategies come from: names, YAML files, mappings, methods themselves, and several of these composed."""

import inspect
import os.path
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path

from vtc.config.knobs import knobs_of
from vtc.core.errors import ConfigError, shown
from vtc.core.registry import unknown
from vtc.io.plain_yaml import load
from vtc.strategies import METHODS, available, shipped

TOP = ("description", "keep", "prune_ratio", "scope", "rounding", "positions", "stages", "families")
DEEPEST = 8  # strategies that refer to one another
MOST = 100  # stages of a strategy that refers to others


@dataclass(frozen=True)
class Written:
    """A strategy as written. data: of its YAML. parts: the strategies that its stages refer to
    (`strategy: NAME`), by the place of the stage. stages: their number, those of all parts included."""

    name: str
    data: dict
    parts: Mapping[int, "Written"] = field(default_factory=dict)
    stages: int = 1


def parts_of(strategy: object) -> list:
    """The strategies that one argument composes: the entries of a list, or of "a+b"; else itself alone."""
    if isinstance(strategy, str) and "+" in strategy and not os.path.exists(strategy):
        return [part.strip() for part in strategy.split("+")]
    if isinstance(strategy, Sequence) and not isinstance(strategy, (str, bytes)):
        if not strategy:
            raise ConfigError("strategy [] is empty; possible: a name, a YAML file, a mapping, or a list of these")
        return list(strategy)
    return [strategy]


def read_strategy(strategy: object) -> tuple[Written, ...]:
    """The strategies that one argument composes, each from a name, a YAML file's path, a mapping, or a method (an
    instance, a class, or MODULE:CLASS), with all strategies that they refer to. Every file is read once.

    YAML is loaded safely. Raises ConfigError in one line for an unknown name, a missing file, invalid YAML, and for
    strategies that refer to themselves, too deep or to too many stages.
    """
    reader = _Reader()
    return tuple(reader.read(part) for part in parts_of(strategy))


class _Reader:
    """Reads strategies and what they refer to. known: those that were read before, by name or real path."""

    def __init__(self):
        self.known: dict[str, Written] = {}

    def read(self, strategy: object, folder: Path | None = None, above: tuple[str, ...] = ()) -> Written:
        """One strategy. folder: where relative paths start. above: the strategies that refer to it, outermost first."""
        if isinstance(strategy, Mapping):
            return self._with_parts("inline", dict(strategy), folder, above)
        if not isinstance(strategy, (str, Path)):
            return self._with_parts(*_of_method(strategy), folder, above)
        name, path = str(strategy), Path(strategy)
        is_file = name not in shipped() and path.suffix in (".yaml", ".yml")
        if is_file and folder is not None:
            path = folder / path
        key = _place(path) if is_file else name
        if key in above:
            chain = " -> ".join(Path(k).name for k in (*above[above.index(key) :], key))
            raise ConfigError(
                f"strategy {shown(name)} refers to itself ({chain}); possible: strategies without a circle"
            )
        if len(above) >= DEEPEST:
            raise ConfigError(
                f"strategy {shown(name)} is referred to through {len(above)} others; possible: {DEEPEST - 1} at most"
            )
        if key not in self.known:
            if is_file:
                (stem, data), folder = (path.stem, _load_mapping(path, f"strategy file {shown(name)}")), path.parent
            else:
                (stem, data), folder = _named(name), None
            self.known[key] = self._with_parts(stem, data, folder, (*above, key))
        return self.known[key]

    def _with_parts(self, name: str, data: dict, folder: Path | None, above: tuple[str, ...]) -> Written:
        stages = data.get("stages")
        entries = stages if isinstance(stages, list) else []
        parts = {}
        for place, entry in enumerate(entries):
            if isinstance(entry, Mapping) and "strategy" in entry:
                if not isinstance(entry["strategy"], str) or "method" in entry:
                    raise ConfigError(
                        f"strategy {name!r}: stage {shown(dict(entry))}; possible: either 'method', or 'strategy' with "
                        "a name or a YAML file"
                    )
                parts[place] = self.read(entry["strategy"], folder, above)
        count = sum(parts[place].stages if place in parts else 1 for place in range(len(entries)))
        if parts and count > MOST:
            raise ConfigError(f"strategy {name!r} has {count} stages with those of its parts; possible: {MOST} at most")
        return Written(name, data, parts, count)


def _place(path: Path) -> str:
    """One text for a file, however its path is written."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # reading it says what is wrong
        return str(path)


def _named(name: str) -> tuple[str, dict]:
    """The strategy of a name that is no file of the user's."""
    if name in shipped():
        return name, _load_mapping(shipped()[name], f"strategy {name!r}")
    if (broken := METHODS.broken(name)) is not None:
        raise ConfigError(broken)
    if name in available() or re.fullmatch(r"[\w.]+:[\w.]+", name):
        return name, _own_strategy(name, METHODS[name].strategy)
    raise ConfigError(unknown("strategy", name, [*available(), "FILE.yaml"]))


def _load_mapping(file: Traversable | Path, what: str) -> dict:
    return _as_mapping(load(file, what, f"a file, or {', '.join(available())}"), what)


def _as_mapping(data: object, what: str) -> dict:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{what} holds {type(data).__name__}; possible: a mapping with {', '.join(TOP)}")
    return dict(data)


def _own_strategy(name: str, strategy: object) -> dict:
    """What the `strategy` of a method says, completed by the method itself and the first line of its docstring."""
    what = f"the strategy of method {shown(name)}"
    if isinstance(strategy, (Path, Traversable)):
        strategy = _load_mapping(strategy, what)
    about = (inspect.getdoc(METHODS[name]) or "").partition("\n")[0]
    defaults = {"description": about, "stages": [{"method": name}]}
    return defaults | _as_mapping({} if strategy is None else strategy, what)


def _of_method(method: object) -> tuple[str, dict]:
    """The strategy of a method's class, or of an instance with its knobs."""
    kind = method if isinstance(method, type) else type(method)
    try:
        name = METHODS.name_of(kind)
    except ConfigError as error:
        if isinstance(method, type):
            raise
        raise ConfigError(
            f"strategy has type {kind.__name__}; possible: a name, a YAML file, a mapping, a method"
        ) from error
    data = _own_strategy(name, kind.strategy)
    if method is not kind:
        knobs = {knob: getattr(method, knob) for knob in knobs_of(kind)}
        data = {key: value for key, value in data.items() if key != "families"} | {
            "stages": [{"method": name, **knobs}]
        }
    return name, data
