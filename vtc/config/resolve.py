"""Strategies as data: YAML or keyword arguments to a checked, frozen StrategyConfig."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from vtc.config.knobs import build, knobs_of, known_keys
from vtc.config.source import TOP, parts, read
from vtc.config.strategy import POSITIONS, StageConfig, StrategyConfig
from vtc.core.budget import ROUNDINGS, SCOPES, Budget, keep_from_prune_ratio, parse_keep
from vtc.core.errors import ConfigError, shown
from vtc.core.registry import listed
from vtc.patches import FAMILIES
from vtc.strategies import METHODS

_SHARED = {"scope": ("per_image", SCOPES), "rounding": ("ceil", ROUNDINGS), "positions": ("compact", POSITIONS)}
_STAGE = ("keep", "prune_ratio", *_SHARED)


def resolve(strategy: object, family: str | None = None, **overrides) -> StrategyConfig:
    """A checked StrategyConfig: file, then its section for `family`, then `overrides` (each wins over the former).

    strategy: a name, a YAML file, a mapping, a method (its class, an instance, or MODULE:CLASS), or several of these to
    compose, as a list or as "a+b": the stages of all in order, each with its own budget and positions. overrides: keep,
    prune_ratio, scope, rounding, positions, or any knob; METHOD.KEY (also METHOD.keep) where several stages know the
    key. Positions that nothing states are the family's own (`Family.positions`; "compact" without a family), which is
    asked by its class and loads no transformers for it. Raises ConfigError in one line for unknown keys
    (with near names), wrong types and values out of range.
    """
    read_parts = [_part(part, family) for part in parts(strategy)]
    if len(read_parts) == 1:
        name, top, stages = read_parts[0]
    else:
        name = "+".join(part[0] for part in read_parts)
        top = {"description": " Then: ".join(str(t.get("description", "")).strip() for _, t, _ in read_parts)}
        stages = [stage for part in read_parts for stage in _pushed_down(*part)]
    _overlay(top, stages, overrides, name)
    if family is not None:
        top.setdefault("positions", FAMILIES[family].positions())
    return _checked(name, top, stages)


def _part(strategy: str | Path | Mapping, family: str | None) -> tuple[str, dict, list[dict]]:
    """Name, top level and stages of one strategy, its section for `family` (or for the one that it follows) applied."""
    name, raw = read(strategy)
    known_keys(raw, TOP, f"strategy {name!r}")
    families = {} if raw.get("families") is None else raw["families"]
    if not isinstance(families, dict):
        raise ConfigError(f"strategy {name!r}: families={shown(families)}; possible: a mapping of family to overrides")
    known_keys(families, listed("vtc.patches"), f"the families of {name!r}")
    for section in families.values():
        # A file is right or wrong as a whole, whichever family it is read for.
        _checked(name, *_with_section(name, raw, section))
    if family is not None and family not in families:
        family = FAMILIES[family].follows
    return name, *_with_section(name, raw, families.get(family))


def _with_section(name: str, raw: dict, section: object) -> tuple[dict, list[dict]]:
    top = {key: value for key, value in raw.items() if key not in ("families", "stages")}
    stages = _stages(name, raw.get("stages"))
    if _budgets(top) and any(map(_budgets, stages)):
        raise ConfigError(f"strategy {name!r} has a keep of its own and one in its stages; possible: one of them")
    _overlay(top, stages, {} if section is None else section, name)
    return top, stages


def _stages(name: str, stages: object) -> list[dict]:
    if not isinstance(stages, list) or not stages or any(not isinstance(s, dict) or "method" not in s for s in stages):
        raise ConfigError(
            f"strategy {name!r}: stages={shown(stages)}; possible: a list of mappings with 'method' "
            f"(one of {', '.join(METHODS)}) and its knobs"
        )
    for stage in stages:
        known_keys(stage, ["method", *_STAGE, *knobs_of(METHODS[stage["method"]])], f"stage {stage['method']!r}")
        _one_budget(stage, f"stage {stage['method']!r}")
    return [dict(stage) for stage in stages]


def _budgets(data: Mapping) -> list[str]:
    return [key for key in ("keep", "prune_ratio") if key in data]


def _one_budget(data: Mapping, where: str) -> None:
    if len(_budgets(data)) > 1:
        raise ConfigError(f"{where}: keep and prune_ratio are both given; possible: one of them")


def _pushed_down(name: str, top: dict, stages: list[dict]) -> list[dict]:
    """The stages of a part of a composition, with what stood at its top."""
    if len(stages) > 1 and _budgets(top):
        raise ConfigError(
            f"strategy {name!r} has one keep for {len(stages)} stages and cannot be composed with others; possible: a "
            "keep in its stages"
        )
    budget, alone = {key: top[key] for key in _budgets(top)}, _only_inside(stages)
    rows = []
    for stage in stages:
        own = {key: value for key, value in stage.items() if not budget or key not in ("keep", "prune_ratio")}
        meant = alone or METHODS[stage["method"]].site != "decoder"
        shared = {key: top[key] for key in _SHARED if key in top and (key == "positions" or meant)}
        rows.append({**shared, **budget, **own})
    return rows


def _overlay(top: dict, stages: list[dict], section: object, name: str) -> None:
    """Writes a flat section of overrides onto the top level or onto the one stage that knows the key."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"strategy {name!r}: section {shown(section)}; possible: a mapping of overrides")
    knobs = {stage["method"]: knobs_of(METHODS[stage["method"]]) for stage in stages}
    dotted = {f"{m}.{key}": (m, key) for m, keys in knobs.items() for key in (*_STAGE, *keys) if len(stages) > 1}
    _known_overrides(section, knobs, dotted, f"the overrides of {name!r}")
    for key, value in sorted(section.items(), key=lambda item: item[0] in dotted):
        if key in ("keep", "prune_ratio"):
            top.pop("keep", None), top.pop("prune_ratio", None)
            top[key] = value
        elif key in _SHARED:
            top[key] = value
            for stage in stages:
                stage.pop(key, None)
        else:
            method, knob = dotted.get(key, (None, key))
            owners = [s for s in stages if (s["method"] == method if method else knob in knobs[s["method"]])]
            if len(owners) > 1:
                possible = ", ".join(dict.fromkeys(f"{s['method']}.{knob}" for s in owners))
                if len({s["method"] for s in owners}) == 1:
                    possible = f"{knob} in the stages of a YAML file or mapping, where one method comes several times"
                raise ConfigError(f"{key}={shown(value)} could belong to several stages; possible: {possible}")
            if knob in ("keep", "prune_ratio"):
                for place in (top, owners[0]):
                    place.pop("keep", None), place.pop("prune_ratio", None)
            owners[0][knob] = value


def _known_overrides(section: Mapping, knobs: dict[str, list[str]], dotted: Mapping, where: str) -> None:
    """Raises ConfigError for a key that no stage knows, and for two budgets of the same thing."""
    plain_keys = [*_STAGE, *dict.fromkeys(key for keys in knobs.values() for key in keys)]
    for key in section:
        if key not in dotted:
            # Of the many keys of a composition only those are listed that can have been meant.
            method, dot, _ = str(key).partition(".")
            near = [d for d in dotted if dot and d.startswith(f"{method}.")]
            known_keys([key], near or [*plain_keys, *(f"{m}.KEY" for m in knobs if dotted)], where)
    _one_budget(section, where)
    for method in knobs:
        own = dict.fromkeys(key for key in ("keep", "prune_ratio") if f"{method}.{key}" in section)
        _one_budget(own, f"{where}, {method}")
        if own and _budgets(section):
            names = f"{_budgets(section)[0]} and {method}.{_budgets(own)[0]}"
            raise ConfigError(f"{where}: {names} are both given; possible: one of them")


def _only_inside(stages: list[dict]) -> bool:
    return all(METHODS[stage["method"]].site == "decoder" for stage in stages)


def _checked(name: str, top: dict, stages: list[dict]) -> StrategyConfig:
    _one_budget(top, f"strategy {name!r}")
    keep = _keep(top)
    if keep is None and len(stages) == 1:
        keep = _keep(stages[0])
    alone = _only_inside(stages)
    built = tuple(_stage(top, stage, alone, keep is None) for stage in stages)
    sites = [s.stage.site for s in built]
    if sites != sorted(sites, reverse=True) or sites.count("projector") > 1:
        raise ConfigError(
            f"strategy {name!r} has stages at {', '.join(sites)}; possible: at most one at the projector, first, then "
            "any number in the decoder"
        )
    if keep is None:
        for s in built:
            if s.stage.site == "projector" and s.budget.keep is None:
                raise ConfigError(f"strategy {name!r} names no budget; possible: keep or prune_ratio")
    elif len(built) == 1:
        built = (dataclasses.replace(built[0], budget=dataclasses.replace(built[0].budget, keep=keep)),)
    return StrategyConfig(name, str(top.get("description", "")).strip(), keep, built)


def _keep(data: Mapping) -> float | int | None:
    if "prune_ratio" in data:
        return keep_from_prune_ratio(data["prune_ratio"])
    return parse_keep(data["keep"]) if "keep" in data else None


def _stage(top: dict, data: dict, alone: bool, own_budget: bool) -> StageConfig:
    """alone: there is no projector stage that options at the top could be meant for."""
    method, shared = METHODS[data["method"]], {}
    inside = method.site == "decoder"
    for key, (default, possible) in _SHARED.items():
        given = {**(top if alone or not inside or key == "positions" else {}), **data}
        value = shared[key] = given.get(key, default)
        if value not in possible:
            raise ConfigError(f"{key}={shown(value)} is unknown; possible: {', '.join(possible)}")
        if inside and key != "positions" and key in given and value != default:
            raise ConfigError(
                f"{key}={shown(value)}: inside the language model {data['method']} ranks whole images and rounds as "
                f"published; possible: {key}={default}, or a stage at the projector"
            )
    own = _keep(data)
    knobs = {key: value for key, value in data.items() if key not in ("method", *_STAGE)}
    budget = Budget(own if own_budget else None, shared["scope"], shared["rounding"])
    return StageConfig(data["method"], build(method, knobs), budget, shared["positions"])
