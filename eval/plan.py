"""The grid: which strategy runs with which budget, each resolved and checked before the first sample."""

from dataclasses import dataclass

import vtc
from vtc.errors import ConfigError
from vtc.eval.settings import Settings

NONE, DOWNSAMPLE = "none", "downsample"
_ANY = "uniform"  # a strategy without knobs, to have a budget parsed


@dataclass(frozen=True)
class Run:
    """One column of the comparison. kind: "none" (unpatched), "downsample", or "vtc". config: the resolved strategy
    (of `downsample`: only its budget counts), None for "none"."""

    name: str
    label: str
    kind: str
    config: object | None = None

    @property
    def keep(self) -> float | int | None:
        """The budget that was asked for."""
        return None if self.config is None else self.config.keep

    def record(self) -> dict:
        """What was done, for run key and result."""
        resolved = None
        if self.kind == "vtc":
            resolved = {key: value for key, value in self.config.dump().items() if key != "description"}
        return {"name": self.label, "kind": self.kind, "keep": self.keep, "resolved": resolved}


def plan(settings: Settings, family: str | None = None) -> list[Run]:
    """The runs in the order of --strategy, then --keep; `none` runs once.

    family: resolves with the family's section of each strategy. Raises ConfigError for anything that is not possible.
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
            runs.append(Run(f"{label}-keep{config.keep!r}", label, kind, config))
    if settings.strategies == (NONE,):
        for keep in settings.keeps:
            if keep is not None:
                vtc.load_strategy(_ANY, keep=keep)
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two runs would be called {name!r}; possible: files of different names, each keep once")
    return runs


def _resolve(strategy: str, family: str | None, budget: dict, settings: Settings) -> object:
    """The strategy with overrides; --seed reaches a method with a `seed` knob unless --set seed=... does."""
    overrides = {**budget, **settings.overrides}
    config = vtc.load_strategy(strategy, family, **overrides)
    if "seed" not in settings.overrides and any("seed" in stage for stage in config.dump()["stages"]):
        config = vtc.load_strategy(strategy, family, **overrides, seed=settings.seed)
    return config
