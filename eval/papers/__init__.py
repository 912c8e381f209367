"""Compares the results of runs with the numbers published in a paper.

`load_card` reads a card (`configs/papers/*.yaml`, described in `vtc.eval.papers.card`), `against` prints and writes the
comparison, `commands` gives the command lines that reproduce a card.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from vtc.eval.papers.card import FULL, PaperCard
from vtc.eval.papers.commands import budget, commands
from vtc.eval.papers.matching import MARKED, compare
from vtc.eval.papers.read import cards, load_card
from vtc.eval.results.saved import SUMMARY
from vtc.io.files import read_json, write_json
from vtc.io.terminal import Terminal

__all__ = ["PaperCard", "against", "cards", "commands", "load_card", "show"]

PIPE_WIDTH = 160  # columns, if the output is not a terminal


def against(card: PaperCard, summary: Mapping, console: Terminal | None = None, output: Path | None = None) -> dict:
    """Compares the runs of a summary (`results.json`) with a card, prints tables and returns the comparison.

    console: None prints nothing. output: a folder in which `against_NAME.json` is written. Published and measured
    figures are in the paper's scale, `..._of_full` are fractions. If nothing can be compared, the card's command lines
    are printed.
    """
    comparison = compare(card, summary)
    if console is not None:
        _print(card, comparison, console)
    if output is not None:
        write_json(Path(output) / f"against_{card.name}.json", comparison)
    return comparison


def show(names: Sequence[str], output: Path | None, console: Terminal) -> None:
    """Prints cards beside the results in a folder or, without a folder, the command lines that reproduce them.

    Raises ConfigError for an unknown card or a folder without results.
    """
    chosen, summary = [load_card(name) for name in names], {"runs": [], "present": [], "comparison": {}}
    if output is not None:
        summary = read_json(output / "results.json", SUMMARY, "possible: the folder of a `vtc eval`")
    for card in chosen:
        against(card, summary, console, output)


def _print(card: PaperCard, comparison: Mapping, console: Terminal) -> None:
    console = console.wide(PIPE_WIDTH)
    say = console.say
    say(f"\nagainst {card.name}: {card.title} ({card.year}), {card.url}", "bold")
    compared = [model for model in comparison["models"] if model["rows"]]
    for model in compared:
        if not model["same_checkpoint"]:
            names = f"measured {model['measured_with']}, published {model['checkpoint']}"
            say(f"THE CHECKPOINT DIFFERS: {names}", "bold red")
        say(f"published for {model['checkpoint']}" + (f": {model['note']}" if model["note"] else ""))
        for row in model["rows"]:
            console.print(_table(row, console.options.ascii_only))
        say(
            f"{model['published_without_run']} published figures have no run here, "
            f"{model['published_without_method']} are of methods that vtc has not got"
        )
    if not compared:
        lines = commands(card, {model["checkpoint"] for model in comparison["models"] if model["same_checkpoint"]})
        say(f"no run here is one of the card's{'; these would be:' if lines else ', which has averages alone'}")
        for line in lines or _averages(card):
            say(f"  {line}")
    else:
        say(f"* more than {MARKED} standard errors of the measured figure apart")
    say(f"measured so far  {card.measured}")
    for reason in card.differs:
        say(f"can differ       {reason}")
    say(f"source           {card.source}")


def _averages(card: PaperCard) -> Iterator[str]:
    """The printed averages of rows without scores, a line each."""
    for model in card.models:
        over = model.average_is or "mean in % of the full model"
        for row in model.rows:
            if row.average is not None and not row.scores and row.strategy != FULL:
                yield f"{row.average:g}  {row.label}, {budget(row)}, on {model.checkpoint}: {over}"


def _table(row: Mapping, ascii_only: bool) -> Table:
    """The table of one published row, with a line for each measured task."""
    title = ", ".join(filter(None, (row["label"], row["budget"], f"run {row['run']}", row["remark"])))
    table = Table(box=box.ASCII if ascii_only else box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("task", no_wrap=True)
    for name in ("n", "published", "measured", "difference", "% of full\npublished", "% of full\nmeasured"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("remarks")
    sign = "+-" if ascii_only else "±"
    for score in row["scores"]:
        error = "" if score["stderr"] is None else f" {sign} {score['stderr']:.1f}"
        table.add_row(
            f"{score['task']} ({score['figure']})", str(score["n"]), f"{score['published']:g}",
            f"{score['measured']:.1f}{error}",
            f"{score['difference']:+.1f}{'*' if score['beyond'] else ' '}", _percent(score["published_of_full"]),
            _percent(score["measured_of_full"]), "; ".join(score["remarks"]),
        )  # fmt: skip
    if row["strategy"] != "none" and len(row["scores"]) > 1:
        printed = "" if row["average_published"] is None else f"printed over all: {row['average_published']:g}"
        means = (_percent(row["mean_published_of_full"]), _percent(row["mean_measured_of_full"]))
        table.add_row("mean of these", "", "", "", "", *means, printed)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
