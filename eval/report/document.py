"""The whole report as blocks, in the order in which one decides."""

from collections.abc import Sequence

from vtc.eval.report import figures, provenance, search, summary, tables
from vtc.eval.report.blocks import Cell, Column, Figures, Fold, Heading, Items, Legend, Part, Table, Text
from vtc.eval.report.read import ReportFolder
from vtc.eval.report.section_grid import Grid
from vtc.eval.report.sections import differences

MOST_PLOTS = 16  # of single tasks on a page, which stays small enough to be sent around


def title(sources: Sequence[ReportFolder]) -> str:
    """Of the page."""
    names = [str(source.sweep.get("name")) if source.sweep else source.name for source in sources]
    return f"vtc report: {', '.join(names)}"


def document(sources: Sequence[ReportFolder], grids: Sequence[Grid]) -> list:
    """All blocks."""
    found: list = [Heading(1, title(sources)), *_head(sources, grids)]
    sweeps = [_sweep(source, number) for number, source in enumerate(sources, 1) if source.sweep]
    found += [part for part, first in sweeps if first and part.blocks]
    for number, grid in enumerate(grids, 1):
        found.append(Part(_section(grid, number, grids[0] if len(grids) > 1 else None)))
    found += [part for part, first in sweeps if not first and part.blocks]
    failed = [table for table in [*map(search.failures, sources), _failed_samples(grids)] if table is not None]
    if failed:
        found.append(Part([Heading(2, "What failed", "failed"), *failed]))
    found.append(Part([Heading(2, "Where the figures come from", "provenance"), *_provenance(sources, grids)]))
    return found


def _sweep(source: ReportFolder, number: int) -> tuple[Part, bool]:
    """What a sweep adds, and whether it comes first, as a search does: that was to find something."""
    name = source.sweep.get("name") or source.name
    kind = "Search" if source.sweep.get("search") else "Sweep"
    mine = search.blocks(source, f"w{number}-")
    return Part([Heading(2, f"{kind} {name}", f"sweep-{number}"), *mine] if mine else []), kind == "Search"


def _head(sources: Sequence[ReportFolder], grids: Sequence[Grid]) -> list:
    """What all is about, what to beware of, and the ways to the sections."""
    found: list = []
    for source in sources:
        if source.sweep:
            about = source.sweep.get("search")
            kind = f"search ({about['sampler']}, {len(about['trials'])} trials)" if about else "sweep"
            name = source.sweep.get("name") or source.name
            found.append(Text(f"{name}: a {kind} with {search.state(source.sweep)}."))
            warning = search.unfinished(source.sweep)
            found += [Text(warning, "bad")] if warning else []
            if source.sweep.get("heldout"):
                found.append(search.verdict(source.sweep))
    if len(grids) > 1:
        found.append(
            Text("Not everything here can be compared. Runs that differ in model, samples, prompts or scoring stand in "
                 "sections of their own, and share no plot, table or test:")
        )  # fmt: skip
        lines = [f"{n}. {summary.title(grid)}" for n, grid in enumerate(grids, 1)]
        apart = ["; ".join(differences(grids[0].section, grid.section)) for grid in grids]
        links = [f"section-{n}" for n in range(1, len(grids) + 1)]
        found.append(Items(lines, links, [text and f": differs from section 1 in {text}" for text in apart]))
    return found


def _section(grid: Grid, number: int, first: Grid | None) -> list:
    """first: the grid of section 1, None if there are no others."""
    name = summary.title(grid)
    apart = "; ".join(differences(first.section, grid.section)) if first else ""
    found: list = [Heading(2, f"{number}. {name}" if first else name, f"section-{number}"), summary.lead(grid)]
    if apart:
        found.append(Text(f"Not compared with section 1. It differs in {apart}.", "bad"))
    found += [*summary.warnings(grid), *summary.best(grid)]
    found += _plots(grid, number)
    found += [Heading(3, "Scores"), tables.scores(grid)]
    seeds = tables.over_seeds(grid)
    found += [seeds] if seeds else []
    kinds = [table for task in grid.section.tasks if (table := tables.kinds(grid, task)) is not None]
    if kinds:
        found += [Heading(3, "Kinds of question"), *_first_open(kinds)]
    found += [Heading(3, "Costs"), *_first_open([tables.costs(grid, task) for task in grid.section.tasks])]
    agreement = tables.agreement(grid)
    return [*found, *([Heading(3, "Agreement with the full model"), agreement] if agreement else [])]


def _first_open(found: list[Table]) -> list:
    return [found[0], *(Fold(table.caption, [table]) for table in found[1:])]


def _plots(grid: Grid, number: int) -> list:
    """Figure against tokens, time and FLOPs; of several tasks their mean, then each task against tokens."""
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
    found: list = [Heading(3, "What accuracy costs"), Legend(grid.section.series())]
    if main:
        found.append(Figures(main))
    if each:
        found += [Heading(3, "Task by task"), Figures(each)]
    if len(tasks) > MOST_PLOTS:
        found.append(Text(f"{len(tasks) - MOST_PLOTS} more tasks have no plot here; the tables have them.", "note"))
    return found


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
    found: list = [block for source in sources if source.sweep for block in provenance.sweep(source)]
    for number, grid in enumerate(grids, 1):
        if len(grids) > 1:
            found.append(Heading(3, f"Section {number}"))
        found += [provenance.facts(grid), *provenance.notes(grid)]
        found.append(Fold("Every run with its key, seeds, date and folder", [provenance.runs(grid)]))
    return found
