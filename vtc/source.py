"""Where strategies come from: shipped names, YAML files, mappings, and several of these composed."""

import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from vtc.errors import ConfigError
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
    name, text = _text(strategy)
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"strategy {name!r} is not valid (safe) YAML: {reason}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"strategy {name!r} holds {type(raw).__name__}; possible: a mapping with {', '.join(TOP)}")
    return name, raw


def _text(strategy: str | Path) -> tuple[str, str]:
    path, known = Path(strategy), shipped()
    if str(strategy) in known:
        return str(strategy), known[str(strategy)].read_text(encoding="utf-8")
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(unknown("strategy", str(strategy), [*known, "FILE.yaml"]))
    try:
        return path.stem, path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise ConfigError(
            f"strategy file {str(path)!r} does not exist; possible: a file, or {', '.join(known)}"
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"strategy file {str(path)[:200]!r} cannot be read ({why}); possible: a file, or {', '.join(known)}"
        ) from None
