"""`vtc sweep`: an experiment from one YAML, on one worker or many."""

from pathlib import Path
from typing import Annotated

import typer

from vtc.cli.options import IMPORT


def sweep(
    file: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped sweep, or a YAML file.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the sweep (needed).")],
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="Worker processes on this machine.")] = 1,
    worker: Annotated[
        bool, typer.Option("--worker", help="Be one more worker of a sweep that shares DIR (or --storage).")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="VTC_SWEEP_STORAGE",
            help="Database of a search whose machines do not share DIR, as postgresql://...; never written to a file.",
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="K=V,K=V", help="Only these cells; a key given twice may have both values.")
    ] = None,
    max_cells: Annotated[int | None, typer.Option(metavar="N", min=1, help="Run at most N cells now.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and how long it would take.")] = False,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Default: cuda if there is one, else cpu.")] = None,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """Run an experiment over methods, budgets, knobs, models and seeds: a grid, random draws, or a search.

    Finished cells are skipped, so the same command goes on after anything that stopped it, and tries failed cells
    again. Ends with DIR/sweep.json, the best as strategy files in DIR/best, and a short table. Exit code 1 if a cell
    failed. How the YAML looks: the files in vtc's configs/sweeps, and vtc.eval.sweep.spec.

    \b
    Examples:
      vtc sweep demo --output results/sweep --dry-run
      vtc sweep demo --output results/sweep --workers 2
      vtc sweep my_sweep.yaml --output results/mine --only strategy=hiprune,keep=0.25
      vtc sweep hiprune_search --output results/search
      vtc sweep hiprune_search --output results/search --worker                    (on another machine that shares it)
      vtc sweep hiprune_search --output my/own --storage postgresql://HOST/DB      (on machines that share nothing else)
      accelerate launch --num_processes 8 -m vtc sweep llava-1.5-7b --output results/llava
    """
    from vtc.eval.sweep.engine import Asked
    from vtc.eval.sweep.engine import sweep as run

    if run(file, Asked(output, workers, worker, dry_run, only, max_cells, device, storage)):
        raise typer.Exit(1)
