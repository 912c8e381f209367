"""The grid of strategies and budgets, each resolved and checked before the first sample."""

import re
from dataclasses import dataclass

import vtc
from vtc.core.errors import ConfigError
from vtc.eval.running.eval_settings import EvalSettings

NONE, DOWNSAMPLE = "none", "downsample"
PUBLISHED, OWN = "published", "own"  # budgets of strategies without a keep
_ANY = "uniform"  # a strategy without knobs, for parsing budgets
_LONGEST = 120  # characters of a run's name, which names files


@dataclass(frozen=True)
class Run:
    """One run of the comparison. name: that of its files; label: the strategy's name. kind: "none" (unpatched),
    "downsample", or "vtc". config: the resolved strategy (for `downsample` only its budget matters), None for "none".
    budget: the requested budget as text: the keep, "published" for shipped strategies without one, "own" for others
    whose stages have budgets of their own; None for "none"."""

    name: str
    label: str
    kind: str
    config: object | None = None
    budget: str | None = None

    @property
    def keep(self) -> float | int | None:
        """The requested budget; None for "none", and if the stages have their own."""
        return None if self.config is None else self.config.keep

    def record(self) -> dict:
        """The method, for run keys and results."""
        resolved = None
        if self.kind == "vtc":
            resolved = {key: value for key, value in self.config.dump().items() if key != "description"}
        budget = {"keep": self.keep, "budget": self.budget}
        return {"name": self.label, "kind": self.kind, **budget, "resolved": resolved}


def plan(settings: EvalSettings, family: str | None = None) -> list[Run]:
    """The runs in the order of --strategy, then --keep; `none` runs once.

    family: resolves strategies with their section for this family. Raises ConfigError for anything impossible.
    """
    runs = []
    for strategy in settings.strategies:
        if strategy == NONE:
            runs.append(Run(NONE, NONE, NONE))
            continue
        for keep in settings.keeps:
            budget = {} if keep is None else {"keep": keep}
            if strategy == DOWNSAMPLE:
                config, label, kind = vtc.load_strategy(_ANY, **budget), DOWNSAMPLE, DOWNSAMPLE
            else:
                config = _resolve(strategy, family, budget, settings)
                label, kind = config.name, "vtc"
            runs.append(_run(label, kind, config, published=_is_shipped(strategy) and not settings.overrides))
    if settings.strategies == (NONE,):
        for keep in settings.keeps:
            if keep is not None:
                vtc.load_strategy(_ANY, keep=keep)
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two runs would be called {name!r}; possible: files of different names, each keep once")
    return runs


def _run(label: str, kind: str, config: object, published: bool) -> Run:
    if config.keep is None:
        budget = PUBLISHED if published else OWN
        return Run(_file_name(label, budget), label, kind, config, budget)
    return Run(_file_name(label, f"keep{config.keep!r}"), label, kind, config, repr(config.keep))


def _is_shipped(strategy: str) -> bool:
    return all(part.strip() in vtc.strategies() for part in strategy.split("+"))


def _file_name(label: str, budget: str) -> str:
    """LABEL-BUDGET, short enough and without characters that file systems may not accept."""
    safe = re.sub(r"[^\w.+=-]", "_", label, flags=re.ASCII).lstrip(".-") or "_"
    return f"{safe[: _LONGEST - len(budget) - 1]}-{budget}"


def _resolve(strategy: str, family: str | None, budget: dict, settings: EvalSettings) -> object:
    """The strategy with overrides; --seed sets the `seed` knob of a method unless --set seed=... is given."""
    overrides = {**budget, **settings.overrides}
    config = vtc.load_strategy(strategy, family, **overrides)
    seeded = [stage["method"] for stage in config.dump()["stages"] if "seed" in stage]
    keys = ["seed"] if len(seeded) == 1 else [f"{method}.seed" for method in dict.fromkeys(seeded)]
    seeds = {key: settings.seed for key in keys if key not in overrides and "seed" not in overrides}
    return vtc.load_strategy(strategy, family, **overrides, **seeds) if seeds else config
