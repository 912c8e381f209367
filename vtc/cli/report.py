"""`vtc report`: results of `vtc eval` and `vtc sweep` as a page to decide from."""

from pathlib import Path
from typing import Annotated

import typer

from vtc.cli.options import IMPORT
from vtc.io.terminal import say


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Outputs of `vtc eval` or `vtc sweep`.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the files go. Default: into the (first) folder.")
    ] = None,
    modules: Annotated[list[str] | None, IMPORT] = None,
) -> None:
    """Write report.html (one page, no network), report.md and report.csv from finished results.

    The page shows the best run of each budget, accuracy against tokens, time and FLOPs with Pareto fronts, scores with
    paired tests, kinds of question, costs, and where each figure comes from. Runs that differ in model, samples,
    prompts or scoring stand in sections of their own and are never compared.

    \b
    Examples:
      vtc report results/demo
      vtc report results/demo results/mine --output results/both
    """
    from vtc.eval.report import report

    for path in report(folders, output):
        say(f"{path.suffix[1:]:8} {path}")
