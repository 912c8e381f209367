"""Reads and checks a sweep's YAML: every error is one line that names the place and what is possible.

    name: hiprune_search
    model: demo                    # or models: [demo, {model: OWNER/NAME, model_args: {dtype: float16}}]
    tasks: demo
    split: tune
    limit: 350
    space:                         # `strategy` and `keep` are ordinary parameters, other names are knobs (--set)
      strategy: [hiprune, fastv]
      keep: [0.25, 0.11]           # null: the strategy's own budget
      alpha: {low: 0.0, high: 1.0, step: 0.05, when: {strategy: hiprune}}
      R: {values: [0.5, 0.75], when: {strategy: fastv}}
    exclude:
      - {strategy: fastv, keep: [0.11]}
    mode: grid                     # of lists, and ranges with a step; random (n, seed); search (trials, sampler, seed)
    objectives: [{figure: accuracy, budget: each}, prefill_flops]
    heldout: {split: test, reference: {strategy: hiprune, keep: 0.25}}

Further settings are those of `vtc eval`: model_args, dialect, seeds, batch_size, max_new_tokens, dataset_path, system,
pad_square. Objectives are described in `vtc.eval.sweep.objectives`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from os.path import isfile
from pathlib import Path

from vtc.core.errors import ConfigError, shown
from vtc.core.registry import unknown
from vtc.eval.running.eval_settings import check_places, parse_places
from vtc.eval.sweep.objectives import Objective, read_objectives
from vtc.eval.sweep.space import MOST, Parameter, ordered, read_parameter
from vtc.io.plain_yaml import parse, read_text

MODES = ("grid", "random", "search")
SAMPLERS = ("tpe", "random", "nsgaii", "gp")
OF_MODE = {"n": "random", "trials": "search", "sampler": "search", "seed": "random or search"}
PLAIN = {
    "dialect": str, "split": str, "limit": int, "batch_size": int, "max_new_tokens": int, "system": str,
    "pad_square": bool,
}  # fmt: skip
KEYS = (
    "name", "model", "models", "model_args", "tasks", *PLAIN, "seeds", "dataset_path", "space", "exclude", "mode",
    *OF_MODE, "objectives", "heldout",
)  # fmt: skip


@dataclass(frozen=True)
class Heldout:
    """The final comparison: the best cell against `reference` (an assignment) on another split."""

    split: str
    reference: Mapping
    limit: int | None
    objective: str


@dataclass(frozen=True)
class Spec:
    """A sweep. models: pairs of a name and arguments of from_pretrained. settings: those of `vtc eval` that all cells
    share. space: parameters, each after those that it depends on. text: the YAML itself."""

    name: str
    text: str
    models: tuple[tuple[str, dict], ...]
    tasks: tuple[str, ...]
    settings: Mapping
    seeds: tuple[int, ...]
    space: tuple[Parameter, ...]
    exclude: tuple[Mapping, ...]
    mode: str
    objectives: tuple[Objective, ...]
    heldout: Heldout | None = None
    n: int = 20
    trials: int = 40
    sampler: str = "tpe"
    seed: int = 0
    names: tuple[str, ...] = field(default=())

    @property
    def aims(self) -> tuple[Objective, ...]:
        """One objective per figure and task, whatever their budgets: the axes of Pareto sets and searches."""
        by_figure = {}
        for objective in self.objectives:
            by_figure.setdefault((objective.figure, objective.task), objective)
        return tuple(by_figure.values())


def shipped() -> dict[str, object]:
    """The shipped sweeps: their files by name."""
    folder = files("vtc.configs") / "sweeps"
    return {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}


def load_spec(name: str) -> Spec:
    """A shipped sweep by name, or one from a YAML file; raises ConfigError in one line."""
    known = shipped()
    file = known.get(name, Path(name))
    if name not in known and not isfile(name):
        raise ConfigError(unknown("sweep", name, [*sorted(known), "FILE.yaml"]))
    return read_spec(read_text(file, f"sweep {shown(name)}", "a file that can be read"), Path(file.name).stem)


def read_spec(text: str, stem: str) -> Spec:
    """The sweep that a YAML text describes; raises ConfigError in one line for anything that is not possible."""
    raw = parse(text, f"sweep {stem!r}")
    try:
        return _spec(raw, text, stem)
    except ConfigError as error:
        raise ConfigError(f"sweep {stem!r}: {error}") from None


def known(raw: object, possible: tuple[str, ...], where: str) -> Mapping:
    """The mapping, if all its keys are possible; else raises ConfigError."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where} is {shown(raw)}; possible: a mapping with {', '.join(possible)}")
    for key in raw:
        if key not in possible:
            raise ConfigError(unknown(f"key in {where}", key, list(possible)))
    return raw


def is_named(value: object) -> bool:
    """Whether the value is a mapping whose keys are all text."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _spec(raw: object, text: str, stem: str) -> Spec:
    raw = known(raw, KEYS, "the sweep")
    if not raw.get("space"):
        raise ConfigError("'space' is missing; possible: a mapping of parameters to lists, such as strategy: [hiprune]")
    mode = _one_of(raw.get("mode", "grid"), MODES, "mode")
    for key, needed in OF_MODE.items():
        if key in raw and mode not in needed:
            raise ConfigError(f"{shown(key)} means nothing in mode {mode}; possible: mode: {needed}")
    space = known(raw["space"], tuple(map(str, raw["space"])) if isinstance(raw["space"], Mapping) else (), "space")
    parameters = ordered([read_parameter(name, value, mode) for name, value in space.items()])
    tasks = tuple(map(str, _listed(raw.get("tasks", "demo"), "tasks")))
    seeds = tuple(_whole(seed, "seeds", 0) for seed in _listed(raw.get("seeds", 0), "seeds"))
    models = _models(raw)
    for label, entries in (("models", models), ("seeds", seeds)):
        if mode == "search" and len(entries) > 1:
            raise ConfigError(f"mode search with {len(entries)} {label}; possible: one, and a file for each other one")
        if "heldout" in raw and len(entries) > 1:
            raise ConfigError(f"heldout with {len(entries)} {label}; possible: one")
    objectives = read_objectives(raw.get("objectives", ["accuracy"]), tasks, parameters)
    numbers = {key: _whole(raw[key], key, 0 if key == "seed" else 1) for key in ("n", "trials", "seed") if key in raw}
    for key in ("n", "trials"):
        if numbers.get(key, 0) > MOST:
            raise ConfigError(f"{key}={numbers[key]} is too many; possible: {MOST} at most")
    settings = {key: _plain(raw[key], key, kind) for key, kind in PLAIN.items() if key in raw}
    if "dataset_path" in raw:
        settings["dataset_path"] = parse_places(raw["dataset_path"])
        check_places(settings["dataset_path"], tasks if "tasks" in raw else None)
    return Spec(
        name=str(raw.get("name", stem)), text=text, models=models, tasks=tasks, settings=settings, seeds=seeds,
        space=parameters, exclude=_excluded(raw.get("exclude", []), parameters), mode=mode, objectives=objectives,
        heldout=_heldout(raw["heldout"], objectives) if "heldout" in raw else None,
        sampler=_one_of(raw.get("sampler", "tpe"), SAMPLERS, "sampler"), **numbers,
        names=tuple(parameter.name for parameter in parameters),
    )  # fmt: skip


def _models(raw: Mapping) -> tuple[tuple[str, dict], ...]:
    if "models" in raw and ("model" in raw or "model_args" in raw):
        raise ConfigError("'models' and 'model' are both given; possible: one of them")
    rows = _listed(raw.get("models", [{"model": raw.get("model", "demo"), "model_args": raw.get("model_args", {})}]),
                   "models")  # fmt: skip
    models = []
    for row in rows:
        row = known({"model": row} if isinstance(row, str) else row, ("model", "model_args"), "models")
        args = row.get("model_args", {})
        if not isinstance(row.get("model"), str) or not is_named(args):
            possible = "a name, or {model: NAME, model_args: {dtype: float16}}"
            raise ConfigError(f"models={shown(row)}; possible: {possible}")
        if "token" in args:
            raise ConfigError("model_args.token would be written into files; possible: a login of the hub's own client")
        models.append((row["model"], dict(args)))
    return tuple(models)


def _excluded(raw: object, parameters: tuple[Parameter, ...]) -> tuple[Mapping, ...]:
    possible = ("model", *(p.name for p in parameters))
    if not isinstance(raw, list):
        possible = "a list of mappings, such as [{strategy: fastv, keep: 0.11}]"
        raise ConfigError(f"exclude={shown(raw)}; possible: {possible}")
    return tuple(dict(known(row, possible, "exclude")) for row in raw)


def _heldout(raw: object, objectives: tuple[Objective, ...]) -> Heldout:
    raw = known(raw, ("split", "reference", "limit", "objective"), "heldout")
    names = [objective.name for objective in objectives]
    objective = raw.get("objective", names[0])
    if objective not in names:
        raise ConfigError(unknown("objective of heldout", objective, names))
    if not isinstance(raw.get("split"), str):
        raise ConfigError("heldout has no split; possible: split: NAME")
    reference = raw.get("reference")
    if not is_named(reference) or not isinstance(reference.get("strategy"), str):
        raise ConfigError(f"heldout.reference={shown(reference)}; possible: a mapping with strategy, keep and knobs")
    limit = raw.get("limit")
    return Heldout(raw["split"], dict(reference), limit and _whole(limit, "heldout.limit", 1), objective)


def _listed(value: object, where: str) -> list:
    items = value if isinstance(value, list) else [value]
    if not items or any(items.count(one) > 1 for one in items):
        raise ConfigError(f"{where}={shown(value)}; possible: a list that is not empty, with each entry once")
    return items


def _one_of(value: object, possible: tuple[str, ...], where: str) -> str:
    if value not in possible:
        raise ConfigError(unknown(where, value, list(possible)))
    return value


def _whole(value: object, where: str, least: int) -> int:
    if type(value) is not int or value < least:
        raise ConfigError(f"{where}={shown(value)}; possible: a whole number >= {least}")
    return value


def _plain(value: object, where: str, kind: type) -> object:
    if kind is int and value is not None:
        return _whole(value, where, 1)
    if value is not None and type(value) is not kind:
        raise ConfigError(f"{where}={shown(value)}; possible: {'true or false' if kind is bool else 'text'}")
    return value
