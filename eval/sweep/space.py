"""The parameters of a sweep, and the assignments of values to them by a grid, a random draw or a search.

A list is a choice. {low, high} is a range, with `step`, `log` or `int: true`; a grid needs a step (or int). A parameter
with `when: {other: value or list}` only applies if the other parameters apply and have one of these values.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vtc.core.errors import ConfigError, shown
from vtc.core.registry import unknown
from vtc.io.plain_yaml import parse

RESERVED = ("model", "model_args", "tasks", "split", "limit", "seed", "seeds", "set")
KEYS = ("values", "low", "high", "step", "log", "int", "when")
MOST = 10_000  # values of a parameter, and cells
DIGITS = 10  # to which the values of steps are rounded: 0.15, not 0.15000000000000002


@dataclass(frozen=True)
class Parameter:
    """A parameter. values: the choices, None for a range. when: the values of other parameters that it depends on."""

    name: str
    values: tuple | None = None
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    whole: bool = False
    when: Mapping[str, tuple] = field(default_factory=dict)

    def applies(self, assigned: Mapping) -> bool:
        """Whether the parameter applies, given the values assigned so far."""
        return all(name in assigned and same(assigned[name], values) for name, values in self.when.items())

    @property
    def choices(self) -> tuple:
        """All values, for a range those of its steps. Raises ConfigError for more than MOST."""
        if self.values is not None:
            return self.values
        if self._count > MOST:
            raise ConfigError(f"space.{self.name} has {self._count} values; possible: {MOST} at most")
        return tuple(map(self._step, range(self._count)))

    @property
    def _count(self) -> int:
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def _step(self, number: int) -> float | int:
        return self._rounded(self.low + number * self.step)

    def _rounded(self, value: float) -> float | int:
        return int(value) if self.whole else round(float(value), DIGITS)

    def draw(self, generator: random.Random) -> object:
        """A random value: in a range it is uniform, or log-uniform."""
        if self.values is not None:
            return generator.choice(self.values)
        if self.step is not None:
            return self._step(generator.choice(range(self._count)))
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = generator.uniform(low, high)
        value = min(max(math.exp(value) if self.log else value, self.low), self.high)
        return round(value) if self.whole else value

    def suggest(self, trial) -> object:
        """A value from an Optuna trial, in which choices other than plain values are encoded as JSON."""
        if self.values is not None:
            coded = {_code(value): value for value in self.values}
            return coded[trial.suggest_categorical(self.name, list(coded))]
        step = None if self.log else self.step
        if self.whole:
            return trial.suggest_int(self.name, self.low, self.high, step=step or 1, log=self.log)
        value = trial.suggest_float(self.name, self.low, self.high, step=step, log=self.log)
        return value if step is None else self._rounded(value)


def _code(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


def same(value: object, expected: object) -> bool:
    """Whether the value is the expected one, or in a list of these; 1 and True differ, 1 and 1.0 do not."""
    options = [expected, *expected] if isinstance(expected, list | tuple) else [expected]
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in options)


def read_parameter(name: object, raw: object, mode: str) -> Parameter:
    """A parameter of `space` in the YAML; raises ConfigError."""
    where = f"space.{name}"
    if not isinstance(name, str) or name in RESERVED:
        raise ConfigError(f"{where} is no parameter; possible: strategy, keep, and knobs; {name} belongs at the top")
    if isinstance(raw, list):
        raw = {"values": raw}
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}={shown(raw)}; possible: a list, or a mapping with {', '.join(KEYS)}")
    for key in raw:
        if key not in KEYS:
            raise ConfigError(unknown(f"key in {where}", key, list(KEYS)))
    when = _when(raw.get("when", {}), where)
    if "values" in raw:
        values = raw["values"]
        if set(raw) - {"values", "when"}:
            raise ConfigError(f"{where} has values and a range; possible: one of them")
        if not isinstance(values, list) or not values or any(same(v, [w]) for i, v in enumerate(values)
                                                             for w in values[:i]):  # fmt: skip
            raise ConfigError(f"{where}.values={values!r}; possible: a list that is not empty, with each value once")
        if name == "strategy" and not all(isinstance(value, str) for value in values):
            raise ConfigError(f"{where}.values={shown(values)}; possible: names and files of strategies")
        return Parameter(name, tuple(values), when=when)
    if name == "strategy":
        raise ConfigError(f"{where} is a range; possible: a list of names and files of strategies")
    return _range(name, raw, when, mode, where)


def _range(name: str, raw: Mapping, when: Mapping, mode: str, where: str) -> Parameter:
    whole, log, step = raw.get("int", False), raw.get("log", False), raw.get("step")
    kinds = (int,) if whole is True else (int, float)
    bounds = [raw.get("low"), raw.get("high"), *([] if step is None else [step])]
    fine = whole in (True, False) and log in (True, False) and not (log and step is not None)
    numbers = all(type(value) in kinds and math.isfinite(value) for value in bounds)
    if not fine or not numbers or not bounds[0] < bounds[1]:
        possible = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{where}={shown(dict(raw))}; possible: low < high ({possible}), with step or log: true")
    if step is not None and step <= 0 or log and bounds[0] <= 0:
        raise ConfigError(f"{where}={shown(dict(raw))}; possible: a step > 0; for log a low > 0")
    if mode == "grid" and (log or step is None and not whole):
        raise ConfigError(f"{where} is a range without a step in a grid; possible: a list, a step, mode: random")
    step = 1 if whole and step is None and not log else step
    if not (bounds[1] - bounds[0]) / (step or 1) < 2**53:
        raise ConfigError(f"{where}={shown(dict(raw))} is too wide; possible: fewer steps")
    return Parameter(name, None, bounds[0], bounds[1], step, log, whole, when)


def _when(raw: object, where: str) -> dict[str, tuple]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}.when={shown(raw)}; possible: a mapping, such as {{strategy: hiprune}}")
    return {str(name): tuple(value) if isinstance(value, list) else (value,) for name, value in raw.items()}


def ordered(parameters: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """The parameters, each after those that it depends on, otherwise as written; raises ConfigError for a cycle."""
    names, result, remaining = [p.name for p in parameters], [], list(parameters)
    for parameter in parameters:
        for other in parameter.when:
            if other not in names:
                raise ConfigError(unknown(f"parameter in space.{parameter.name}.when", other, names))
    while remaining:
        ready = next((p for p in remaining if set(p.when) <= {q.name for q in result}), None)
        if ready is None:
            cycle = ", ".join(parameter.name for parameter in remaining)
            raise ConfigError(f"space: {cycle} depend on each other; possible: no cycle")
        result.append(ready)
        remaining.remove(ready)
    return tuple(result)


def grid(parameters: Sequence[Parameter], assigned: Mapping | None = None) -> Iterator[dict]:
    """All assignments; the last parameter changes fastest."""
    assigned = dict(assigned or {})
    if not parameters:
        yield assigned
        return
    first, *rest = parameters
    if not first.applies(assigned):
        yield from grid(rest, assigned)
        return
    for value in first.choices:
        yield from grid(rest, {**assigned, first.name: value})


def draw(parameters: Sequence[Parameter], seed: int, number: int) -> dict:
    """The random assignment with this number, for this seed."""
    generator, assigned = random.Random(f"{seed}/{number}"), {}
    for parameter in parameters:
        if parameter.applies(assigned):
            assigned[parameter.name] = parameter.draw(generator)
    return assigned


def suggest(parameters: Sequence[Parameter], trial) -> dict:
    """The assignment of an Optuna trial; parameters that it already has keep their values."""
    assigned: dict = {}
    for parameter in parameters:
        if parameter.applies(assigned):
            assigned[parameter.name] = parameter.suggest(trial)
    return assigned


def is_excluded(assigned: Mapping, excluded: Sequence[Mapping]) -> bool:
    """Whether the assignment contains one of the excluded partial assignments."""
    return any(row and all(k in assigned and same(assigned[k], v) for k, v in row.items()) for row in excluded)


def chosen(only: str | None, cells: Sequence) -> list:
    """The cells that match `--only KEY=VALUE,KEY=VALUE` (a repeated key allows several values), and the baselines.

    Raises ConfigError for a key or a value that no cell has, and if no cell has all of them.
    """
    if only is None:
        return list(cells)
    filters, known = _filters(only), [_filtered(cell) for cell in cells]
    for key, values in filters.items():
        existing = [params[key] for params in known if key in params]
        if not existing:
            raise ConfigError(unknown("key in --only", key, sorted({name for params in known for name in params})))
        for value in values:
            if not any(same(one, [value]) for one in existing):
                possible = shown(list(dict.fromkeys(map(str, existing))))
                raise ConfigError(f"--only {shown(f'{key}={value}')} matches no cell; possible: {possible}")
    matches = [all(k in params and same(params[k], values) for k, values in filters.items()) for params in known]
    if not any(matches):
        raise ConfigError(f"--only {shown(only)} matches no cell; possible: values that stand together in one")
    return [cell for cell, wished in zip(cells, matches) if wished or cell.role == "baseline"]


def _filtered(cell) -> dict:
    """The parameters of a cell that `--only` can filter by."""
    return {**cell.params["set"], **{key: cell.params[key] for key in ("model", "strategy", "keep", "seed")}}


def _filters(only: str) -> dict[str, list]:
    """The allowed values of each key; raises ConfigError for an invalid filter."""
    filters: dict[str, list] = {}
    for part in only.split(","):
        key, sign, text = part.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--only {shown(part)} is no filter; possible: KEY=VALUE, such as strategy=hiprune")
        filters.setdefault(key.strip(), []).append(parse(text, f"--only {shown(part)}: the value"))
    return filters
