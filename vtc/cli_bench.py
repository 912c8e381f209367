"""`vtc bench`: what vtc's own parts cost on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from vtc import ConfigError

bench = typer.Typer(help="Measure what vtc's own parts cost on this machine.", rich_markup_mode=None)


@bench.callback()
def _group() -> None:
    """Measure what vtc's own parts cost on this machine."""


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"{option} {text!r} is no list of whole numbers >= 1; possible: such as 576,2880")
    return [int(part) for part in parts]


@bench.command()
def selection(
    selectors: Annotated[str, typer.Option(metavar="A,B", help="Which ones.")] = "coverage,max-min,max-sum,dpp",
    sizes: Annotated[str, typer.Option(metavar="N,N", help="Visual tokens.")] = "256,576,1024,2880,4096,16384",
    picks: Annotated[str, typer.Option(metavar="K,K", help="Tokens kept.")] = "64,160,320",
    device: Annotated[str, typer.Option(metavar="D", help="cpu, or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each, taken in turn; medians are shown.")] = 3,
    limit: Annotated[float, typer.Option(min=0, help="Seconds that a plain loop may take; else it is left out.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    output: Annotated[Path, typer.Option(metavar="DIR", help="For results.json and selection.png.")] = Path(
        "results/bench-selection"
    ),
) -> None:
    """Time each set selector alone: against the definition as a plain loop, and against a random draw.

    \b
    Examples:
      vtc bench selection --sizes 2880 --picks 320
      vtc bench selection --selectors coverage --device cuda --output results/h200
    """
    from rich.console import Console

    from vtc.bench.report import environment, table, write
    from vtc.bench.selection import SELECTORS, measure

    names = [name.strip() for name in selectors.split(",")]
    unknown = [name for name in names if name not in SELECTORS]
    if unknown:
        raise ConfigError(f"selector {unknown[0]!r} is unknown; possible: {', '.join(SELECTORS)}")
    _check_device(device)
    tokens, counts = _numbers("--sizes", sizes), _numbers("--picks", picks)
    record = {"schema": "vtc.bench.selection/1", "environment": environment(device), "repeats": repeats, "seed": seed}
    console, rows = Console(stderr=True), []
    with console.status("") as status:
        for name in names:
            for n in tokens:
                for k in (k for k in counts if k <= n):
                    status.update(f"vtc bench selection: {name}, N = {n}, k = {k}")
                    rows.append(measure(name, n, k, device, repeats, limit, seed))
                    write(rows, output, record)
    if not rows:
        raise ConfigError(f"--picks {picks} are more than --sizes {sizes}; possible: at least one k <= N")
    Console(width=150).print(table(rows))
    typer.echo(f"results  {output}")


def _check_device(device: str) -> None:
    import torch

    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ConfigError(f"--device {device!r} is not there; possible: cpu{', cuda' * torch.cuda.is_available()}")
