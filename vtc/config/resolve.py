"""Strategies as data: YAML or keyword arguments to a checked, frozen StrategyConfig."""

from collections.abc import Iterator, Mapping, Sequence

from vtc.config.knobs import build_method, knobs_of, known_keys
from vtc.config.source import TOP, Written, read_strategy
from vtc.config.strategy import POSITIONS, StageConfig, StrategyConfig
from vtc.core.budget import ROUNDINGS, SCOPES, keep_from_prune_ratio, parse_keep
from vtc.core.errors import ConfigError, shown
from vtc.core.registry import current, names_in
from vtc.patches import FAMILIES
from vtc.strategies import METHODS

_SHARED = {"scope": ("per_image", SCOPES), "rounding": ("ceil", ROUNDINGS), "positions": ("compact", POSITIONS)}
SITES = ("encoder", "projector", "decoder", "attention")  # in the order in which they run
_INSIDE = ("decoder", "attention")  # the language model
_STAGE = ("keep", "prune_ratio", *_SHARED)


def resolve(strategy: object, family: str | None = None, **overrides) -> StrategyConfig:
    """A checked StrategyConfig: file, then its section for `family`, then `overrides` (each wins over the former).

    strategy: a name, a YAML file, a mapping, a method (its class, an instance, or MODULE:CLASS), or several of these to
    compose, as a list or as "a+b": the stages of all in order, each with its own budget and positions. overrides: keep,
    prune_ratio, scope, rounding, positions, or any knob; METHOD.KEY (also METHOD.keep) where several stages know the
    key. Positions that are not given are the family's own (`Family.positions`; "compact" without a family), and a
    scope that is not given is the method's where images are tiled (`Stage.tile_scope`). The family's class is asked,
    which does not load transformers. Raises ConfigError in one line for unknown keys (with near names), wrong types
    and values out of range.
    """
    return resolve_written(read_strategy(strategy), family, **overrides)


def resolve_written(strategy: Sequence[Written], family: str | None = None, **overrides) -> StrategyConfig:
    """As `resolve`, of strategies that were read before."""
    for part in strategy:
        _check_sections(part)
    parts = [(part.name, *_for_family(part, family)) for part in strategy]
    if len(parts) == 1:
        name, top, stages = parts[0]
    else:
        name = "+".join(name for name, _, _ in parts)
        top = {"description": _joined_descriptions(top for _, top, _ in parts)}
        stages = [stage for part in parts for stage in _pushed_down(*part)]
    _overlay(top, stages, overrides, name)
    return _checked(name, top, stages, family)


def _joined_descriptions(tops: Iterator[Mapping]) -> str:
    return " Then: ".join(str(top.get("description", "")).strip() for top in tops)


def _check_sections(strategy: Written) -> None:
    """Raises ConfigError for any error in the sections for families, also of the strategies that it refers to: a file
    is right or wrong as a whole, whichever family it is read for."""
    name = strategy.name
    known_keys(strategy.data, TOP, f"strategy {name!r}")
    families = _sections(strategy)
    if not isinstance(families, dict):
        raise ConfigError(f"strategy {name!r}: families={shown(families)}; possible: a mapping of family to overrides")
    known_keys(families, names_in("vtc.patches"), f"the families of {name!r}")
    for part in {id(part): part for part in strategy.parts.values()}.values():
        _check_sections(part)
    for family in families:
        _checked(name, *_for_family(strategy, family), None)


def _sections(strategy: Written) -> dict:
    families = strategy.data.get("families")
    return {} if families is None else families


def _for_family(strategy: Written, family: str | None) -> tuple[dict, list[dict]]:
    """Top level and stages of a strategy, its section for `family` (or for the one that it follows) applied."""
    name, sections = strategy.name, _sections(strategy)
    top = {key: value for key, value in strategy.data.items() if key not in ("families", "stages")}
    stages = _stages(strategy, family, bool(_budgets(top)))
    if strategy.parts and "description" not in top:
        top["description"] = _joined_descriptions(part.data for part in strategy.parts.values())
    if family is not None and family not in sections:
        family = FAMILIES[family].follows
    section = sections.get(family)
    _overlay(top, stages, {} if section is None else section, name)
    return top, stages


def _stages(strategy: Written, family: str | None, one_keep: bool) -> list[dict]:
    """The stages of a strategy, with the strategies that it refers to replaced by their stages. one_keep: it has a
    keep of its own."""
    name, stages = strategy.name, strategy.data.get("stages")
    if (
        not isinstance(stages, list)
        or not stages
        or any(
            not isinstance(stage, dict) or "method" not in stage and place not in strategy.parts
            for place, stage in enumerate(stages)
        )
    ):
        raise ConfigError(
            f"strategy {name!r}: stages={shown(stages)}; possible: a list of mappings with 'method' "
            f"(one of {', '.join(METHODS)}) and its knobs, or with 'strategy' (a name or a YAML file) and overrides"
        )
    if one_keep and any(map(_budgets, stages)):
        raise ConfigError(f"strategy {name!r} has a keep of its own and one in its stages; possible: one of them")
    rows = []
    for place, stage in enumerate(stages):
        if place in strategy.parts:
            part = strategy.parts[place]
            part_top, part_stages = _for_family(part, family)
            overrides = {key: value for key, value in stage.items() if key != "strategy"}
            _overlay(part_top, part_stages, overrides, part.name)
            rows += _pushed_down(part.name, part_top, part_stages)
            continue
        stage = {**stage, "method": current(stage["method"])}
        known_keys(stage, ["method", *_STAGE, *knobs_of(METHODS[stage["method"]])], f"stage {stage['method']!r}")
        _one_budget(stage, f"stage {stage['method']!r}")
        rows.append(stage)
    return rows


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
        settings = {key: value for key, value in stage.items() if not budget or key not in ("keep", "prune_ratio")}
        applies = alone or METHODS[stage["method"]].site not in _INSIDE
        shared = {key: top[key] for key in _SHARED if key in top and (key == "positions" or applies)}
        rows.append({**shared, **budget, **settings})
    return rows


def _overlay(top: dict, stages: list[dict], section: object, name: str) -> None:
    """Writes a flat section of overrides onto the top level or onto the one stage that knows the key."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"strategy {name!r}: section {shown(section)}; possible: a mapping of overrides")
    section = {current(key): value for key, value in section.items()}
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
            if key == "scope" and any(METHODS[stage["method"]].site == "projector" for stage in stages):
                for stage in stages:  # it is of the stage at the projector
                    if METHODS[stage["method"]].site == "encoder":
                        stage[key] = METHODS[stage["method"]].tile_scope
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
        budgets = dict.fromkeys(key for key in ("keep", "prune_ratio") if f"{method}.{key}" in section)
        _one_budget(budgets, f"{where}, {method}")
        if budgets and _budgets(section):
            names = f"{_budgets(section)[0]} and {method}.{_budgets(budgets)[0]}"
            raise ConfigError(f"{where}: {names} are both given; possible: one of them")


def _only_inside(stages: list[dict]) -> bool:
    return all(METHODS[stage["method"]].site in _INSIDE for stage in stages)


def _checked(name: str, top: dict, stages: list[dict], family: str | None) -> StrategyConfig:
    _one_budget(top, f"strategy {name!r}")
    if family is not None:
        top.setdefault("positions", FAMILIES[family].positions())
    keep = _keep(top)
    if keep is None and len(stages) == 1:
        keep = _keep(stages[0])
    alone, tiled = _only_inside(stages), family is not None and _is_tiled(family)
    configs = tuple(_stage(top, stage, alone, keep is None, tiled) for stage in stages)
    sites = [config.stage.site for config in configs]
    if sites != sorted(sites, key=SITES.index) or max(map(sites.count, ("encoder", "projector", "attention"))) > 1:
        before = "at most one in the encoder, first, then " if "encoder" in sites else ""
        behind = ", then at most one that changes attention" if "attention" in sites else ""
        raise ConfigError(
            f"strategy {name!r} has stages at {', '.join(sites)}; possible: {before}at most one at the projector"
            f"{'' if before else ', first'}, then any number in the decoder{behind}"
        )
    if set(sites) == {"attention"} and keep is not None and not (isinstance(keep, float) and keep == 1.0):
        raise ConfigError(_without_budget(keep, configs[0].method))
    if keep is not None and {"encoder", "projector"} <= set(sites):
        first, second = (config.method for config in configs[:2])
        raise ConfigError(
            f"keep={keep!r} cannot be shared by {first} in the encoder and {second} at the projector; possible: "
            f"{first}.keep and {second}.keep"
        )
    _check_rasters(configs)
    if keep is None and any(config.stage.site not in _INSIDE and config.keep is None for config in configs):
        raise ConfigError(f"strategy {name!r} names no budget; possible: keep or prune_ratio")
    return StrategyConfig(name, str(top.get("description", "")).strip(), keep, configs)


def _check_rasters(configs: tuple[StageConfig, ...]) -> None:
    """Raises ConfigError where a stage at the projector needs a raster or frames that the encoder's takes apart."""
    names = [config.method for config in configs if config.stage.site == "encoder"]
    for config in configs:
        if names and config.stage.site == "projector" and (config.stage.grid or config.stage.clips):
            needed = "whole frames" if config.stage.clips else "one raster of tokens"
            raise ConfigError(
                f"{config.method} needs {needed}, and {names[0]} leaves none of the encoder's; possible: a "
                f"method that looks at no neighbours, or {config.method} alone"
            )


def _is_tiled(family: str) -> bool:
    """Whether its images are several tiles, or those of the family that it follows."""
    follows = FAMILIES[family].follows
    return FAMILIES[family].tiled or follows is not None and FAMILIES[follows].tiled


def _keep(data: Mapping) -> float | int | None:
    if "prune_ratio" in data:
        return keep_from_prune_ratio(data["prune_ratio"])
    return parse_keep(data["keep"]) if "keep" in data else None


def _without_budget(keep: float | int, method: str) -> str:
    return (
        f"keep={keep!r}: {method} changes attention and drops nothing, so it has no budget; possible: no keep, or a "
        f"stage that drops before it (such as hiprune+{method})"
    )


def _stage(top: dict, data: dict, alone: bool, own_budget: bool, tiled: bool) -> StageConfig:
    """alone: there is no projector stage that options at the top could be meant for. own_budget: the strategy has no
    keep of its own. tiled: images are several tiles."""
    method, shared = METHODS[data["method"]], {}
    inside = method.site in _INSIDE
    for key, (default, possible) in _SHARED.items():
        if key == "scope" and (tiled and not inside or method.site == "encoder"):
            default = method.tile_scope
        given = {**(top if alone or not inside or key == "positions" else {}), **data}
        value = shared[key] = given.get(key, default)
        if value not in possible:
            raise ConfigError(f"{key}={shown(value)} is unknown; possible: {', '.join(possible)}")
        if key == "scope" and value in ("per_tile", "per_frame") and getattr(method, "clips", False):
            raise ConfigError(
                f"scope={value}: {data['method']} compares the frames of a clip, so they compete; possible: per_clip, "
                "per_request"
            )
        if method.site == "encoder" and key == "scope" and value != default:
            raise ConfigError(
                f"scope={value}: inside the encoder {data['method']} works on one crop at a time; possible: "
                f"scope={default}, or a stage at the projector"
            )
        if inside and key != "positions" and key in given and value != default:
            raise ConfigError(
                f"{key}={shown(value)}: inside the language model {data['method']} ranks whole images and rounds as "
                f"published; possible: {key}={default}, or a stage at the projector"
            )
    keep = _keep(data)
    if method.site == "attention" and keep is not None and own_budget:
        raise ConfigError(_without_budget(keep, data["method"]))
    knobs = {key: value for key, value in data.items() if key not in ("method", *_STAGE)}
    return StageConfig(data["method"], build_method(method, knobs), keep if own_budget else None, **shared)
