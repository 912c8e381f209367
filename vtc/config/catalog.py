"""What vtc can do, read from the registries: families, strategies resolved for them, and the table of both."""

from typing import Any

from vtc.config.resolve import resolve
from vtc.config.strategy import Strategy, StrategyConfig
from vtc.core.errors import ConfigError
from vtc.strategies import available


def families() -> list[str]:
    """Names of the supported model families."""
    from vtc.patches import FAMILIES

    return FAMILIES.names()


def load_strategy(strategy: Strategy, family: str | None = None, **overrides: Any) -> StrategyConfig:
    """A strategy, as `vtc.patch` takes it, resolved for a family, with overrides; see `vtc.config.resolve.resolve`."""
    if family is not None:
        from vtc.patches import FAMILIES

        FAMILIES[family]
    return resolve(strategy, family, **overrides)


def budget_for_tables(strategy: str, family: str) -> dict[str, Any]:
    """The budget with which a strategy can be resolved: none but its own, or all tokens where it names none, as a
    method from outside may."""
    try:
        resolve(strategy, family)
    except ConfigError:
        return {"keep": 1.0}
    return {}


def support_table() -> str:
    """Strategies x families as a Markdown table, those from outside too: "yes", "yes*" where a [CLS] method uses the
    mean query, or "no" where a stage has no site."""
    from vtc.patches import FAMILIES

    names = FAMILIES.names()
    lines = ["| strategy | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for strategy in available():
        cells = []
        for name in names:
            budget = budget_for_tables(strategy, name)
            stages = [s.stage for s in resolve(strategy, name, **budget).stages]
            needs_cls = any(stage.needs_cls for stage in stages) and not FAMILIES[name].may_have_cls
            possible = all(stage.site in FAMILIES[name].sites for stage in stages)
            cells.append(("yes*" if needs_cls else "yes") if possible else "no")
        lines.append(f"| `{strategy}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
