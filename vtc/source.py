"""Where strategies come from: shipped names, YAML files, mappings, and several of these composed."""

import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtc.errors import ConfigError, shown
from vtc.plain_yaml import load
from vtc.registry import unknown
from vtc.strategies import shipped

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


def read(strategy: str | Path | Mapping) -> tuple[str, dict]:
    """A strategy's name and raw data, from a shipped name, a YAML file's path, or a mapping.

    YAML is loaded safely. Raises ConfigError in one line for an unknown name, a missing file or invalid YAML.
    """
    if isinstance(strategy, Mapping):
        return "inline", dict(strategy)
    if not isinstance(strategy, (str, Path)):
        raise ConfigError(f"strategy has type {type(strategy).__name__}; possible: a name, a YAML file, or a mapping")
    name, file, what = _file(strategy)
    raw = load(file, what, f"a file, or {', '.join(shipped())}")
    if not isinstance(raw, dict):
        raise ConfigError(f"{what} holds {type(raw).__name__}; possible: a mapping with {', '.join(TOP)}")
    return name, raw


def _file(strategy: str | Path) -> tuple[str, object, str]:
    """A strategy's name, its file, and what a message calls it."""
    path, known = Path(strategy), shipped()
    if str(strategy) in known:
        return str(strategy), known[str(strategy)], f"strategy {str(strategy)!r}"
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(unknown("strategy", str(strategy), [*known, "FILE.yaml"]))
    return path.stem, path, f"strategy file {shown(str(path))}"
