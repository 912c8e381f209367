"""`vtc check`: whether a method, or a family, keeps the contract that every other one keeps."""

import json
from typing import Annotated

import typer

from vtc.cli.options import IMPORT, SETTING, family_names, overrides
from vtc.io.terminal import Terminal, bar, say


def check(
    name: Annotated[
        str,
        typer.Argument(help="A method, a strategy (also FILE.yaml, or several as A+B), a family, or MODULE:CLASS."),
    ],
    everything: Annotated[bool, typer.Option("--all", help="A family with every method, not with six.")] = False,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="K", help="Budget. Default: 0.3 at the projector, inside its own.")
    ] = None,
    settings: Annotated[list[str] | None, SETTING] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """Check that a method keeps the contract on every family, or a family with the methods of vtc.

    It runs on the families' tiny models with random weights, on the CPU, in about a minute. Exit code 1 if anything
    failed.

    \b
    Examples:
      vtc check hiprune
      vtc check norm --import my_module
      vtc check my_module:Norm --set longest=false
      vtc check qwen2_vl --all
    """
    from vtc.check.contract import CONTRACT
    from vtc.check.contract_table import notes, tables
    from vtc.check.outcome import USUAL, family_at, of_family, of_method
    from vtc.config.source import read_strategy
    from vtc.strategies import available

    family = name if name in family_names() and name not in available() else None
    if ":" in name and "+" not in name:
        family = family_at(name)
    given = overrides(settings) | ({} if keep is None else {"keep": keep})
    methods, columns = list(available()) if everything else list(USUAL), family_names()
    if family is None:
        read_strategy(name)
    console = Terminal(stderr=True)
    with bar(console, hidden=not console.is_terminal) as progress:
        total = len(methods if family else columns) * (len(CONTRACT) + 1)
        task = progress.add_task("", total=total)

        def announce(what: str) -> None:
            progress.update(task, description=f"vtc check: {what}", advance=1)

        outcome = of_family(family, methods, given, announce) if family else of_method(name, columns, given, announce)
    if as_json:
        say(json.dumps(outcome.to_dict(), indent=2))
    else:
        for table in tables(outcome):
            Terminal().wide(150).print(table)
        for line in notes(outcome):
            say(line)
    if not outcome.holds:
        raise typer.Exit(1)
