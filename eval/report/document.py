"""The whole report as blocks, with what matters most for a decision first."""

from collections.abc import Sequence

from vtc.eval.report import figures, provenance, search, summary, tables
from vtc.eval.report.blocks import Cell, Column, Figures, Fold, Heading, Items, Legend, Part, Table, Text
from vtc.eval.report.read import ReportFolder
from vtc.eval.report.section_grid import Grid
from vtc.eval.report.sections import differences

MOST_PLOTS = 16  # of single tasks on a page, so that its file stays small


def title(sources: Sequence[ReportFolder]) -> str:
    """The title of the page."""
    names = [str(source.sweep.get("name")) if source.sweep else source.name for source in sources]
    return f"vtc report: {', '.join(names)}"


def document(sources: Sequence[ReportFolder], grids: Sequence[Grid]) -> list:
    """All blocks of the report."""
    blocks: list = [Heading(1, title(sources)), *_head(sources, grids)]
    sweeps = [_sweep(source, number) for number, source in enumerate(sources, 1) if source.sweep]
    blocks += [part for part, first in sweeps if first and part.blocks]
    for number, grid in enumerate(grids, 1):
        blocks.append(Part(_section(grid, number, grids[0] if len(grids) > 1 else None)))
    blocks += [part for part, first in sweeps if not first and part.blocks]
    failed = [table for table in [*map(search.failures, sources), _failed_samples(grids)] if table is not None]
    if failed:
        blocks.append(Part([Heading(2, "What failed", "failed"), *failed]))
    blocks.append(Part([Heading(2, "Where the figures come from", "provenance"), *_provenance(sources, grids)]))
    return blocks


def _sweep(source: ReportFolder, number: int) -> tuple[Part, bool]:
    """The part of a sweep, and whether it comes first: that of a search does, as it holds the result."""
    name = source.sweep.get("name") or source.name
    kind = "Search" if source.sweep.get("search") else "Sweep"
    blocks = search.blocks(source, f"w{number}-")
    return Part([Heading(2, f"{kind} {name}", f"sweep-{number}"), *blocks] if blocks else []), kind == "Search"


def _head(sources: Sequence[ReportFolder], grids: Sequence[Grid]) -> list:
    """The title's details, warnings, and links to the sections."""
    blocks: list = []
    for source in sources:
        if source.sweep:
            about = source.sweep.get("search")
            kind = f"search ({about['sampler']}, {len(about['trials'])} trials)" if about else "sweep"
            name = source.sweep.get("name") or source.name
            blocks.append(Text(f"{name}: a {kind} with {search.state(source.sweep)}."))
            warning = search.unfinished(source.sweep)
            blocks += [Text(warning, "bad")] if warning else []
            if source.sweep.get("heldout"):
                blocks.append(search.verdict(source.sweep))
    if len(grids) > 1:
        blocks.append(
            Text("Not everything here can be compared. Runs that differ in model, samples, prompts or scoring are in "
                 "sections of their own, and share no plot, table or test:")
        )  # fmt: skip
        lines = [f"{n}. {summary.title(grid)}" for n, grid in enumerate(grids, 1)]
        apart = ["; ".join(differences(grids[0].section, grid.section)) for grid in grids]
        links = [f"section-{n}" for n in range(1, len(grids) + 1)]
        blocks.append(Items(lines, links, [text and f": differs from section 1 in {text}" for text in apart]))
    return blocks


def _section(grid: Grid, number: int, first: Grid | None) -> list:
    """The blocks of one section. first: the grid of section 1, None if this is the only section."""
    name = summary.title(grid)
    apart = "; ".join(differences(first.section, grid.section)) if first else ""
    blocks: list = [Heading(2, f"{number}. {name}" if first else name, f"section-{number}"), summary.lead(grid)]
    if apart:
        blocks.append(Text(f"Not compared with section 1. It differs in {apart}.", "bad"))
    blocks += [*summary.warnings(grid), *summary.best(grid)]
    blocks += _plots(grid, number)
    blocks += [Heading(3, "Scores"), tables.scores(grid)]
    seeds = tables.over_seeds(grid)
    blocks += [seeds] if seeds else []
    kinds = [table for task in grid.section.tasks if (table := tables.kinds(grid, task)) is not None]
    if kinds:
        blocks += [Heading(3, "Kinds of question"), *_first_open(kinds)]
    blocks += [Heading(3, "Costs"), *_first_open([tables.costs(grid, task) for task in grid.section.tasks])]
    agreement = tables.agreement(grid)
    return [*blocks, *([Heading(3, "Agreement with the full model"), agreement] if agreement else [])]


def _first_open(in_order: list[Table]) -> list:
    return [in_order[0], *(Fold(table.caption, [table]) for table in in_order[1:])]


def _plots(grid: Grid, number: int) -> list:
    """Plots of the figure against tokens, time and FLOPs; for several tasks of their mean, then of each task."""
    alone = grid.section.tasks[0] if len(grid.section.tasks) == 1 else None
    costs = (figures.TOKENS if alone else figures.KEPT, figures.TIME, figures.FLOPS)
    main = [figures.against(grid, cost, alone, f"f{number}-{i}-") for i, cost in enumerate(costs)]
    main.insert(1, figures.against(grid, costs[0], alone, f"f{number}-n-", near=True))
    main = [figure for figure in main if figure is not None]
    tasks = [] if alone else grid.section.tasks
    plotted = enumerate(tasks[:MOST_PLOTS])
    each = [figures.against(grid, figures.TOKENS, task, f"t{number}-{i}-") for i, task in plotted]
    each = [figure for figure in each if figure is not None]
    if not main and not each:
        return []
    blocks: list = [Heading(3, "What accuracy costs"), Legend(grid.section.series())]
    if main:
        blocks.append(Figures(main))
    if each:
        blocks += [Heading(3, "Task by task"), Figures(each)]
    if len(tasks) > MOST_PLOTS:
        blocks.append(Text(f"{len(tasks) - MOST_PLOTS} more tasks have no plot here; the tables have them.", "note"))
    return blocks


def _failed_samples(grids: Sequence[Grid]) -> Table | None:
    rows = []
    for grid in grids:
        for (i, task), measured in grid.cells.items():
            result = measured.result
            if result["n_errors"]:
                texts = (tables.named(grid, i), task, str(result["n_errors"]), str(result["first_error"]))
                rows.append([*map(Cell, texts)])
    columns = [Column("run", False), Column("task", False), Column("failed"), Column("the first one", False)]
    return Table("Failed samples", columns, rows) if rows else None


def _provenance(sources: Sequence[ReportFolder], grids: Sequence[Grid]) -> list:
    blocks: list = [block for source in sources if source.sweep for block in provenance.sweep(source)]
    for number, grid in enumerate(grids, 1):
        if len(grids) > 1:
            blocks.append(Heading(3, f"Section {number}"))
        blocks += [provenance.facts(grid), *provenance.notes(grid)]
        blocks.append(Fold("Every run with its key, seeds, date and folder", [provenance.runs(grid)]))
    return blocks
