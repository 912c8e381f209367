"""What several commands of `vtc` share: options, and the names that they take."""

import typer

from vtc import ConfigError

SETTING = typer.Option("--set", metavar="KEY=VALUE", help="Override a knob or part of the budget; may be repeated.")
FAMILY = typer.Option("--family", metavar="NAME", help="Model family, such as llava; `vtc list` names them.")


def overrides(settings: list[str] | None) -> dict:
    """The values of every --set by key; raises ConfigError."""
    from vtc.knobs import parse_set

    return dict(parse_set(text) for text in settings or [])


def family_names() -> list[str]:
    """The families by their files, which are named after them; importing them would load transformers."""
    import pkgutil

    import vtc.patches

    return sorted(m.name for m in pkgutil.iter_modules(vtc.patches.__path__) if not m.name.startswith("_"))


def known_family(name: str) -> str:
    """The name, if a family has it; raises ConfigError."""
    from vtc.registry import unknown

    if name not in family_names():
        raise ConfigError(unknown("family", name, family_names()))
    return name
