"""What vtc can do, read from the registries: families, strategies resolved for them, and the table of both."""

from typing import Any

from vtc.config.resolve import resolve
from vtc.config.strategy import Strategy, StrategyConfig
from vtc.strategies import shipped


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


def support_table() -> str:
    """Methods x families as a Markdown table: "yes", or "yes*" where a [CLS] method uses the mean query."""
    from vtc.patches import FAMILIES

    names = FAMILIES.names()
    lines = ["| strategy | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for strategy in shipped():
        cells = []
        for name in names:
            needs_cls = any(s.stage.needs_cls for s in resolve(strategy, name).stages)
            cells.append("yes*" if needs_cls and not FAMILIES[name].may_have_cls else "yes")
        lines.append(f"| `{strategy}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)
