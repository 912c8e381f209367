"""What vtc can do, read from the registries: families, strategies resolved for them, and the table of both."""

from typing import Any

from vtc.config.hybrid import every_layer
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
    mean query, "clips" for a method that compares frames, or "no" where a family refuses the strategy."""
    from vtc.patches import FAMILIES

    names = FAMILIES.names()
    lines = ["| strategy | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for strategy in available():
        cells = []
        for name in names:
            config = resolve(strategy, name, **budget_for_tables(strategy, name))
            needs_cls = any(s.stage.needs_cls for s in config.stages)
            word = "yes*" if needs_cls and not FAMILIES[name].may_have_cls else "yes"
            if config.projector is not None and getattr(config.projector.stage, "clips", False):
                word = "no" if FAMILIES[name].video is None else "clips"
            refused = any(s.stage.site in FAMILIES[name].refuses for s in config.stages)
            refused = refused or bool(every_layer(config)) and FAMILIES[name].softmax_layers(4) is not None
            cells.append("no" if refused else word)
        lines.append(f"| `{strategy}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def refused_table() -> str:
    """The models that are refused by name, by `model_type`, and why, as a Markdown table."""
    from vtc.patches._refused import REFUSED

    lines = ["| model | why |", "|---|---|"]
    for why in dict.fromkeys(REFUSED.values()):
        lines.append(f"| {', '.join(f'`{kind}`' for kind in REFUSED if REFUSED[kind] == why)} | {why} |")
    return "\n".join(lines)
