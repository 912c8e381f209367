"""What several commands of `vtc` share: options, and the names that they take."""

import typer

from vtc import ConfigError


def _imported(modules: list[str] | None) -> list[str] | None:
    """Imports the modules of --import; raises ConfigError."""
    from vtc.core.registry import load_module

    for name in modules or []:
        load_module(name)
    return modules


SETTING = typer.Option("--set", metavar="KEY=VALUE", help="Override a knob or part of the budget; may be repeated.")
IMPORT = typer.Option(
    "--import", metavar="MODULE", callback=_imported, is_eager=True,
    help="A module that registers methods, families or benchmarks, in worker processes too; may be repeated.",
)  # fmt: skip
FAMILY = typer.Option("--family", metavar="NAME", help="Model family, such as llava; `vtc list` names them.")


def overrides(settings: list[str] | None) -> dict:
    """The values of every --set by key; raises ConfigError."""
    from vtc.config.knobs import parse_set

    return dict(parse_set(text) for text in settings or [])


def family_names() -> list[str]:
    """The families, those of vtc by their files, which are named after them: importing them would load transformers."""
    from vtc.core.registry import names_in

    return names_in("vtc.patches")


def known_family(name: str) -> str:
    """The name, if a family has it; raises ConfigError."""
    from vtc.core.registry import unknown

    if name not in family_names():
        raise ConfigError(unknown("family", name, family_names()))
    return name
