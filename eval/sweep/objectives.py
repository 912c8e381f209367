"""The objectives of a sweep: figures of a finished cell to maximize or minimize, optionally under a budget.

    accuracy       the primary figure of a task (with several tasks: `task: NAME`)
    relative       primary figure / that of the unpruned model, mean over the tasks: the papers' average
    prefill_flops  of the language model's prefill, per sample
    first_token    seconds of vision, selection and prefill per sample (sum of the medians)
    tokens         visual tokens in the average decoder layer
    agreement      cosine of the last prompt token's final hidden state with and without the method, mean over samples;
                   each sample is then seen unpruned, too

An objective is one of these words, or {figure, task, budget, name}. budget: only cells with at most this fraction or
number of visual tokens count, as measured, with a tolerance of one token for rounding; `each`: one objective per value
of `keep`. Without a task, costs are means over the tasks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vtc.core.errors import ConfigError, shown
from vtc.core.registry import unknown

FIGURES = {
    "accuracy": "maximize", "relative": "maximize", "prefill_flops": "minimize", "first_token": "minimize",
    "tokens": "minimize", "agreement": "maximize",
}  # fmt: skip
PARTS = ("vision", "selection", "prefill")
KEYS = ("figure", "task", "budget", "name")


@dataclass(frozen=True)
class Objective:
    """One figure to maximize or minimize; see the module."""

    name: str
    figure: str
    task: str | None = None
    budget: float | int | None = None

    @property
    def direction(self) -> str:
        """maximize or minimize."""
        return FIGURES[self.figure]

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        return 1 if self.direction == "maximize" else -1

    def record(self) -> dict:
        """The objective as in sweep.json."""
        return {"name": self.name, "figure": self.figure, "direction": self.direction, "task": self.task,
                "budget": self.budget}  # fmt: skip

    def measure(self, tasks: Mapping, base: Mapping | None) -> float | None:
        """The figure of a run's `tasks`, ignoring the budget; None if unknown. base: the tasks of the unpruned run."""
        if self.figure == "relative":
            return _mean([_ratio(_primary(result), base and _primary(base[name])) for name, result in tasks.items()])
        read = _READ[self.figure]
        return _mean([read(result) for name, result in tasks.items() if self.task in (None, name)])

    def excess(self, tasks: Mapping) -> float:
        """The share of visual tokens by which a run exceeds the budget; 0 or less if it is within the budget."""
        return max((_excess(r["tokens"], self.budget) for n, r in tasks.items() if self.task in (None, n)), default=0.0)

    def value(self, tasks: Mapping, base: Mapping | None) -> float | None:
        """The figure; None if it is unknown or the run exceeds the budget."""
        return None if self.excess(tasks) > 0 else self.measure(tasks, base)


def _primary(result: Mapping) -> float | None:
    return result["figures"].get(result["primary"], {}).get("value")


def _first_token(result: Mapping) -> float | None:
    vision, selection, prefill = (result["seconds"][part]["median"] for part in PARTS)
    return None if vision is None or prefill is None else vision + (selection or 0.0) + prefill


_READ = {
    "accuracy": _primary,
    "prefill_flops": lambda result: result["prefill_flops"]["after"],
    "first_token": _first_token,
    "tokens": lambda result: result["tokens"]["visual_average"],
    "agreement": lambda result: result.get("agreement"),
}


def _mean(values: Sequence[float | None]) -> float | None:
    return fmean(values) if values and None not in values else None


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _excess(tokens: Mapping, budget: float | int | None) -> float:
    before, average = tokens["visual_before"], tokens["visual_average"]
    if budget is None or not before or average is None:
        return 0.0
    most = budget * before if isinstance(budget, float) else budget
    return (average - most - 1) / before


def read_objectives(raw: object, tasks: Sequence[str], parameters: Sequence) -> tuple[Objective, ...]:
    """The objectives in a sweep's YAML; raises ConfigError."""
    rows = raw if isinstance(raw, list) else [raw]
    objectives = [objective for row in rows for objective in _read(row, tasks, parameters)]
    names = [objective.name for objective in objectives]
    if not objectives or len(set(names)) < len(names):
        raise ConfigError(f"objectives={shown(raw)}; possible: a list of {', '.join(FIGURES)}, each name once")
    return tuple(objectives)


def _read(row: object, tasks: Sequence[str], parameters: Sequence) -> list[Objective]:
    row = {"figure": row} if isinstance(row, str) else row
    if not isinstance(row, Mapping):
        raise ConfigError(f"objectives: {shown(row)}; possible: a word, or a mapping with {', '.join(KEYS)}")
    for key in row:
        if key not in KEYS:
            raise ConfigError(unknown("key in an objective", key, list(KEYS)))
    figure, task = row.get("figure"), row.get("task")
    if figure not in FIGURES:
        raise ConfigError(unknown("objective", figure, list(FIGURES)))
    if task is not None and (task not in tasks or figure == "relative"):
        possible = [] if figure == "relative" else list(tasks)
        raise ConfigError(unknown(f"task of objective {shown(figure)}", task, possible))
    if figure == "accuracy" and task is None:
        if len(tasks) > 1:
            raise ConfigError(f"objective 'accuracy' of {len(tasks)} tasks; possible: relative, or task: {tasks[0]}")
        task = tasks[0]
    name = row.get("name", figure if len(tasks) == 1 or row.get("task") is None else f"{figure}-{task}")
    if not isinstance(name, str) or not name or set(name) - set(_NAME):
        raise ConfigError(f"objective's name {shown(name)}; possible: letters, digits and - _ .")
    budgets = _budgets(row.get("budget"), parameters)
    return [Objective(name if b is None else f"{name}@{b}", figure, task, b) for b in budgets]


_NAME = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


def _budgets(budget: object, parameters: Sequence) -> list:
    if budget == "each":
        keep = next((p for p in parameters if p.name == "keep" and (p.values or p.step)), None)
        if keep is None:
            raise ConfigError("budget: each, but space has no list of keep; possible: a number")
        return [value for value in keep.choices if value is not None]
    if budget is None:
        return [None]
    fraction = isinstance(budget, float) and math.isfinite(budget) and 0 < budget <= 1
    if not fraction and not (type(budget) is int and budget >= 1):
        raise ConfigError(f"budget={shown(budget)}; possible: a fraction in (0, 1], a number of tokens, each")
    return [budget]


def dominates(first: Sequence[float], second: Sequence[float], signs: Sequence[int]) -> bool:
    """Whether `first` is never worse and at least once better."""
    gains = [sign * (a - b) for a, b, sign in zip(first, second, signs)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def pareto(points: Sequence[Sequence[float | None]], signs: Sequence[int]) -> list[int]:
    """Indices of the points that no other point dominates; points with unknown values are left out."""
    known = [i for i, point in enumerate(points) if None not in point]
    return [i for i in known if not any(dominates(points[j], points[i], signs) for j in known if j != i)]
