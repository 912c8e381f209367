"""Strategies as data: YAML or keyword arguments to a checked, frozen StrategyConfig, and back to a resolved dump."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from vtc.budget import ROUNDINGS, SCOPES, Budget, keep_from_prune_ratio, parse_keep
from vtc.errors import ConfigError
from vtc.registry import module_names, unknown
from vtc.strategies import METHODS, shipped
from vtc.strategies.base import Stage

POSITIONS = ("keep", "compact")
_TOP = ("description", "keep", "prune_ratio", "scope", "rounding", "positions", "stages", "families")


@dataclass(frozen=True)
class StrategyConfig:
    """A strategy resolved for one model family: nothing in it is left to defaults.

    keep, scope, rounding: the budget (see Budget). positions: "keep" (survivors retain their rotary positions) or
    "compact" (renumbered without gaps). stage: the method with its knobs.
    """

    name: str
    description: str
    budget: Budget
    positions: str
    stage: Stage

    def dump(self) -> dict:
        """The resolved strategy as plain data; `vtc.patch` takes it back as YAML and does the same again."""
        method = next(name for name in METHODS if METHODS[name] is type(self.stage))
        return {
            "description": self.description,
            **dataclasses.asdict(self.budget),
            "positions": self.positions,
            "stages": [{"method": method, **dataclasses.asdict(self.stage)}],
        }


def read(strategy: str | Path | Mapping) -> tuple[str, dict]:
    """A strategy's name and raw data, from a shipped name, a YAML file's path, or a mapping.

    YAML is loaded safely. Raises ConfigError in one line for an unknown name, a missing file or invalid YAML.
    """
    if isinstance(strategy, Mapping):
        return "inline", dict(strategy)
    if not isinstance(strategy, (str, Path)):
        raise ConfigError(f"strategy has type {type(strategy).__name__}; possible: a name, a YAML file, or a mapping")
    path = Path(strategy)
    if str(strategy) in shipped():
        name, text = str(strategy), shipped()[str(strategy)].read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml"):
        try:
            name, text = path.stem, path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            raise ConfigError(
                f"strategy file {str(path)!r} does not exist; possible: a file, or {', '.join(shipped())}"
            ) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"strategy file {str(path)[:200]!r} cannot be read ({why}); possible: a file, or {', '.join(shipped())}"
            ) from None
    else:
        raise ConfigError(unknown("strategy", str(strategy), [*shipped(), "FILE.yaml"]))
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"strategy {name!r} is not valid (safe) YAML: {reason}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"strategy {name!r} holds {type(raw).__name__}; possible: a mapping with {', '.join(_TOP)}")
    return name, raw


def resolve(strategy: str | Path | Mapping, family: str | None = None, **overrides) -> StrategyConfig:
    """A checked StrategyConfig: file, then its section for `family`, then `overrides` (each wins over the former).

    overrides: keep, prune_ratio, scope, rounding, positions, or any knob of the method. Raises ConfigError in one
    line for unknown keys (with near names), wrong types and values out of range.
    """
    name, raw = read(strategy)
    _known_keys(raw, _TOP, f"strategy {name!r}")
    merged = {key: value for key, value in raw.items() if key != "families"}
    families = {} if raw.get("families") is None else raw["families"]
    if not isinstance(families, dict):
        raise ConfigError(f"strategy {name!r}: families={families!r}; possible: a mapping of family to overrides")
    _known_keys(families, module_names("vtc.patches"), f"the families of {name!r}")
    stage = _stage_data(name, merged)
    for section in families.values():
        # A file is right or wrong as a whole, whichever family it is read for.
        _resolved(name, merged, stage, [section])
    return _resolved(name, merged, stage, [families.get(family), overrides])


def _resolved(name: str, merged: dict, stage: dict, sections: list) -> StrategyConfig:
    merged, stage = dict(merged), dict(stage)
    for section in sections:
        _overlay(merged, stage, {} if section is None else section, name)
    return _build(name, merged, stage)


def _known_keys(data: Mapping, possible: typing.Iterable[str], where: str) -> None:
    for key in data:
        if key not in possible:
            raise ConfigError(unknown(f"key in {where}", key, sorted(possible)))


def _stage_data(name: str, merged: dict) -> dict:
    stages = merged.get("stages")
    if not isinstance(stages, list) or len(stages) != 1 or not isinstance(stages[0], dict) or "method" not in stages[0]:
        raise ConfigError(
            f"strategy {name!r}: stages={stages!r}; possible: a list of one mapping with 'method' "
            f"(one of {', '.join(METHODS)}) and its knobs"
        )
    return dict(stages[0])


def _overlay(merged: dict, stage: dict, section: Mapping, name: str) -> None:
    """Writes a flat section of overrides onto the top level or onto the stage's knobs."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"strategy {name!r}: section {section!r}; possible: a mapping of overrides")
    knobs = [f.name for f in dataclasses.fields(METHODS[stage["method"]])]
    top = [key for key in _TOP if key not in ("stages", "families", "description")]
    _known_keys(section, [*top, *knobs], f"the overrides of {name!r}")
    if "keep" in section and "prune_ratio" in section:
        raise ConfigError("keep and prune_ratio were both given; possible: one of them")
    for key, value in section.items():
        if key in top:
            if key in ("keep", "prune_ratio"):
                merged.pop("keep", None), merged.pop("prune_ratio", None)
            merged[key] = value
        else:
            stage[key] = value


def _build(name: str, merged: dict, stage: dict) -> StrategyConfig:
    if "keep" in merged and "prune_ratio" in merged:
        raise ConfigError(f"strategy {name!r}: keep and prune_ratio are both given; possible: one of them")
    if "prune_ratio" in merged:
        merged["keep"] = keep_from_prune_ratio(merged["prune_ratio"])
    for key, default, possible in (
        ("scope", "per_image", SCOPES),
        ("rounding", "ceil", ROUNDINGS),
        ("positions", "compact", POSITIONS),
    ):
        if merged.setdefault(key, default) not in possible:
            raise ConfigError(f"{key}={merged[key]!r} is unknown; possible: {', '.join(possible)}")
    if "keep" not in merged:
        raise ConfigError(f"strategy {name!r} names no budget; possible: keep or prune_ratio")
    method = METHODS[stage.pop("method")]
    return StrategyConfig(
        name=name,
        description=str(merged.get("description", "")).strip(),
        budget=Budget(parse_keep(merged["keep"]), merged["scope"], merged["rounding"]),
        positions=merged["positions"],
        stage=_stage(method, stage),
    )


def _stage(method: type[Stage], knobs: dict) -> Stage:
    hints = typing.get_type_hints(method)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(method)}
    _known_keys(knobs, fields, f"method {method.__name__}")
    for key, value in knobs.items():
        knobs[key] = _typed(key, value, fields[key])
    return method(**knobs)


def _typed(key: str, value: object, hint: object) -> object:
    """`value` if it has the type of the knob (an int passes for a float), else ConfigError."""
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{key}={value!r} is unknown; possible: {', '.join(map(str, typing.get_args(hint)))}")
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) in options:
        return value
    if type(value) is int and float in options:
        return float(value)
    names = " or ".join(t.__name__ for t in options)
    raise ConfigError(f"{key}={value!r} has type {type(value).__name__}; possible: {names}")


def parse_set(text: str) -> tuple[str, object]:
    """One `--set key=value` of the command line; the value is read as (safe) YAML. Raises ConfigError."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {text!r} is no override; possible: KEY=VALUE, such as alpha=0.2")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value is not valid (safe) YAML") from None
