"""The tables of a section: scores as in papers, kinds of question, costs, agreement with the full model."""

import math
import statistics
from collections.abc import Callable, Mapping

from vtc.eval.report.blocks import Cell, Column, Rule, Table
from vtc.eval.report.measured import FIRST, Measured
from vtc.eval.report.section_grid import Grid
from vtc.eval.report.significance import ALPHA
from vtc.eval.results.statistics import REPLICATES
from vtc.eval.showing.console import scaled, unit

UNKNOWN = "-"
BETTER, WORSE, BEST, LIKE = "▲", "▼", "★", "≈"
MARKS = {
    WORSE: f"significantly below none (corrected p < {ALPHA})",
    BETTER: "significantly above none",
    BEST: "best run of its budget",
    LIKE: f"not distinguishable from the best of its budget (corrected p >= {ALPHA})",
}
HOT = 0.5  # the relative loss against `none` with the strongest tint
DEGREES = 10


def named(grid: Grid, i: int) -> str:
    """A run's label with its budget."""
    budget = grid.section.entries[i].run["method"]["budget"]
    return grid.section.labels[i] + (f", {budget}" if budget else "")


def with_error(value: float | None, error: float | None, scale: float = 1.0) -> str:
    """VALUE ± ERROR, each with one decimal."""
    return scaled(value, scale) + ("" if value is None or error is None else f" ± {scaled(error, scale)}")


def p_text(p: float | None) -> str:
    """A p value with two significant digits."""
    return UNKNOWN if p is None else f"{p:.2f}" if p >= 0.1 else f"{p:.2g}"


def signed(value: float | None, scale: float = 1.0) -> str:
    """A value with its sign and one decimal."""
    return UNKNOWN if value is None else f"{scale * value:+.1f}"


def marks(grid: Grid, measured: Measured, i: int) -> tuple[str, str]:
    """The signs of a figure, and their meaning."""
    signs, difference = "", (measured.compared or {}).get("difference") or {}
    if measured.holm_none is not None and measured.holm_none < ALPHA and difference.get("value"):
        signs += BETTER if difference["value"] > 0 else WORSE
    budget = next((b for b in grid.budgets if i in b.members), None)
    if budget is not None and budget.best == i:
        signs += BEST
    elif measured.holm_best is not None and measured.holm_best >= ALPHA:
        signs += LIKE
    return signs, "; ".join(MARKS[sign] for sign in signs)


def order(grid: Grid) -> list[int | Rule]:
    """The rows of every table: `none`, then budget by budget, the best first."""
    ordered: list[int | Rule] = [i for i, entry in enumerate(grid.section.entries) if entry.full]
    for budget in grid.budgets:
        count = "" if budget.tokens is None else f": about {budget.tokens:.0f} visual tokens"
        ordered.append(Rule(f"{budget.name} kept{count}"))
        ordered += sorted(budget.members, key=lambda i: (-(-1 if (score := grid.score(i)[0]) is None else score), i))
    placed = {i for i in ordered if isinstance(i, int)}
    rest = [i for i in range(len(grid.section.entries)) if i not in placed]
    return [*ordered, *([Rule("tokens kept unknown"), *rest] if rest else [])]


def rows(grid: Grid, cells: Callable[[int], list[Cell]]) -> list:
    """The rows of a table from the cells of each run."""
    return [place if isinstance(place, Rule) else cells(place) for place in order(grid)]


def first_cell(grid: Grid, i: int) -> Cell:
    """The first cell of a row."""
    return Cell(named(grid, i), strong=any(budget.best == i for budget in grid.budgets))


def about_tests(grid: Grid) -> list[str]:
    """Notes on the tests and their correction."""
    if not grid.tests:
        return ["No tests: they need the sample logs of the runs and of none."]
    counts = [f"{task}: {none} against none, {best} against the best" for task, (none, best) in grid.tests.items()]
    return [
        f"± is one standard error (bootstrap over groups of samples, {REPLICATES} replicates).",
        f"Tests: two-sided paired bootstrap of the difference of the figure shown, on the samples that both runs "
        f"answered, {grid.replicates} replicates. p values are corrected for many comparisons by Holm's method, within "
        f"each task and separately for the two questions (tests of {'; of '.join(counts)}).",
        "The best of a budget is chosen on these samples: its own figure is somewhat flattered, and tests against it "
        "find differences a little too easily.",
    ]


def scores(grid: Grid) -> Table:
    """The main table; with a single task it also has differences and p values."""
    section, tasks = grid.section, grid.section.tasks
    legend = [f"{sign} {text}." for sign, text in MARKS.items()] if grid.tests else []
    if len(tasks) > 1:
        columns = [Column("strategy, budget", False), *(Column(_head(grid, task)) for task in tasks)]
        columns.append(Column("average, % of none"))
        caption = "Scores, in brackets per cent of the full model's; their mean over tasks"

        def over_tasks(i: int) -> list[Cell]:
            return [first_cell(grid, i), *(_score(grid, i, task, True) for task in tasks), _average(grid, i)]

        notes = ["Average: mean over tasks of score / score of none; its error takes tasks as independent."]
        return Table(caption, columns, rows(grid, over_tasks), [*legend, *notes, *about_tests(grid)])
    (task,) = tasks
    heads = (_head(grid, task), "% of none", "difference to none", "p against none (Holm)", "p against best (Holm)")
    columns = [Column("strategy, budget", False), *map(Column, heads)]

    def cells(i: int) -> list[Cell]:
        measured = grid.cells[i, task]
        compared = {} if section.entries[i].full else measured.compared or {}
        gap = compared.get("difference") or {}
        return [
            first_cell(grid, i), _score(grid, i, task, False),
            Cell(with_error(compared.get("relative"), compared.get("relative_stderr"), 100)),
            Cell(signed(gap.get("value"), measured.scale) + _plus(gap.get("stderr"), measured.scale)),
            Cell(p_text(measured.holm_none)), Cell(p_text(measured.holm_best)),
        ]  # fmt: skip

    return Table("Scores, against the full model (none) and against the best run of the same budget", columns,
                 rows(grid, cells), [*legend, *about_tests(grid)])  # fmt: skip


def _plus(error: float | None, scale: float) -> str:
    return "" if error is None else f" ± {scaled(error, scale)}"


def _head(grid: Grid, task: str) -> str:
    result = next(m.result for m in grid.cells.values() if m.task == task)
    return f"{task}: {result['primary']}, {unit(result['scale'])}"


def _score(grid: Grid, i: int, task: str, share: bool) -> Cell:
    measured = grid.cells.get((i, task))
    if measured is None:
        return Cell(UNKNOWN)
    signs, meaning = marks(grid, measured, i)
    text = with_error(measured.value, measured.figure["stderr"], measured.scale)
    if share and measured.relative is not None and not grid.section.entries[i].full:
        text += f" ({scaled(measured.relative, 100)})"
    failed = measured.result["n_errors"]
    meaning = "; ".join(filter(None, (meaning, f"{failed} samples failed" if failed else "")))
    return Cell(text, signs + ("†" if failed else ""), said=meaning, strong=BEST in signs)


def _average(grid: Grid, i: int) -> Cell:
    average = grid.average(i)
    partial = len(average["tasks"]) < len(grid.section.tasks)
    part = f" ({len(average['tasks'])} of {len(grid.section.tasks)} tasks)" if partial and average["tasks"] else ""
    best = any(budget.best == i for budget in grid.budgets)
    return Cell(with_error(average["value"], average["stderr"], 100) + part, BEST if best else "", strong=best)


def kinds(grid: Grid, task: str) -> Table | None:
    """Figures per kind of question, tinted by loss; None if there is only one kind."""
    base = grid.cells.get((grid.baseline, task)) if grid.baseline is not None else None
    names = list(dict.fromkeys(c for m in grid.cells.values() if m.task == task for c in m.result["categories"]))
    if len(names) < 2:
        return None
    sizes = {c: max(m.result["categories"].get(c, {}).get("n", 0) for m in grid.cells.values() if m.task == task)
             for c in names}  # fmt: skip
    scale = next(1.0 if m.scale == 1 else 100.0 for m in grid.cells.values() if m.task == task)

    def cells(i: int) -> list[Cell]:
        measured = grid.cells.get((i, task))
        figures = {} if measured is None else measured.result["categories"]
        base_figures = {} if base is None else base.result["categories"]
        return [first_cell(grid, i), *(_kind(figures.get(c), base_figures.get(c), scale) for c in names)]

    columns = [Column("strategy, budget", False), *(Column(f"{c} (n = {sizes[c]})") for c in names)]
    notes = ["Tint: what is lost against none, strongest where half or more is."] if base else []
    return Table(f"{task}: kinds of question, {unit(scale)}", columns, rows(grid, cells), notes)


def _kind(figure: Mapping | None, base: Mapping | None, scale: float) -> Cell:
    if figure is None or figure["value"] is None:
        return Cell(UNKNOWN)
    heat, base_text = None, ""
    if base and base["value"]:
        lost = 1 - figure["value"] / base["value"]
        heat = max(0, min(DEGREES, math.ceil(DEGREES * lost / HOT - 1e-9)))
        base_text = f"none: {scaled(base['value'], scale)}"
    return Cell(with_error(figure["value"], figure["stderr"], scale), heat=heat, said=base_text)


def costs(grid: Grid, task: str) -> Table:
    """Tokens, FLOPs and times on one task."""
    heads = (
        "visual tokens", "kept, %", "prefill GFLOPs", "FLOPs, % of none", "papers' FLOPs, %", "first token, ms",
        "first token, % of none", *(f"{part}, ms" for part in (*FIRST, "decode", "total")),
        "selection, % of first token",
    )  # fmt: skip
    base = grid.cells.get((grid.baseline, task)) if grid.baseline is not None else None

    def cells(i: int) -> list[Cell]:
        measured = grid.cells.get((i, task))
        if measured is None:
            return [first_cell(grid, i), *[Cell(UNKNOWN)] * len(heads)]
        result, first = measured.result, measured.first
        seconds = {part: spread["median"] for part, spread in result["seconds"].items()}
        counts, flops = result["tokens"], result["prefill_flops"]
        known = None not in (first[0], base and base.first[0])
        share = first[0] and seconds["selection"] is not None and seconds["selection"] / first[0]
        texts = [
            f"{_count(counts['visual_before'])} → {_count(counts['visual_average'])}", scaled(counts["kept"], 100),
            UNKNOWN if flops["after"] is None else f"{flops['after'] / 1e9:.4g}", scaled(flops["ratio"], 100),
            scaled(result["paper_flops"]["ratio"], 100), milliseconds(*first),
            scaled(first[0] / base.first[0], 100) if known and base.first[0] else UNKNOWN,
            *(milliseconds(seconds.get(part)) for part in (*FIRST, "decode", "total")),
            scaled(share if share is not False else None, 100),
        ]  # fmt: skip
        return [first_cell(grid, i), *map(Cell, texts)]

    notes = [
        "Per sample. Visual tokens: without pruning → seen by an average decoder layer. Prefill FLOPs: of the language "
        "model; papers': of the visual tokens alone.",
        "First token: median of vision + selection + prefill ± one standard error over samples, on one machine under "
        "one load; parts: medians. Where samples were answered in batches, each has its share of the batch.",
    ]
    return Table(f"{task}: costs", [Column("strategy, budget", False), *map(Column, heads)], rows(grid, cells), notes)


def milliseconds(value: float | None, error: float | None = None) -> str:
    """Seconds as milliseconds with three significant digits."""
    if value is None:
        return UNKNOWN
    places = max(0, min(2, 2 - math.floor(math.log10(max(1000 * value, 1e-9))))) if value else 0
    return f"{1000 * value:.{places}f}" + ("" if error is None else f" ± {1000 * error:.{places}f}")


def _count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def agreement(grid: Grid) -> Table | None:
    """Loyalty, and the accuracy on samples that are sensitive to compression, if known."""
    compared = {key: m.compared or {} for key, m in grid.cells.items() if not m.entry.full}
    measures = [
        (task, name)
        for task in grid.section.tasks
        for name in ("loyalty", "sensitive")
        if any(c.get(name) is not None for (_, t), c in compared.items() if t == task)
    ]
    if not measures:
        return None

    def cells(i: int) -> list[Cell]:
        row = [first_cell(grid, i)]
        for task, name in measures:
            value = compared.get((i, task), {}).get(name)
            if isinstance(value, Mapping):
                value, n = value["value"], value["n"]
                row.append(Cell(UNKNOWN if value is None else f"{scaled(value, 100)} (n = {n})"))
            else:
                row.append(Cell(scaled(value, 100)))
        return row

    titles = {"loyalty": "loyalty, %", "sensitive": "sensitive, %"}
    columns = [Column("strategy, budget", False), *(Column(f"{task}: {titles[name]}") for task, name in measures)]
    notes = ["Loyalty: share of answers that are those of none, right or wrong (arXiv 2506.00479)."]
    if any(name == "sensitive" for _, name in measures):
        notes.append(
            "Sensitive: mean score on the samples that none gets right and the downsample run of the same budget (else "
            "the smallest) does not (group A of VTC-Bench, arXiv 2510.07143)."
        )
    caption = "Loyalty, and samples that tell methods apart" if len(notes) > 1 else "Loyalty"
    return Table(caption, columns, rows(grid, cells), notes)


def over_seeds(grid: Grid) -> Table | None:
    """Mean and standard deviation of runs that differ only in the seed; None if there are none."""
    section = grid.section
    groups: dict[tuple, list[int]] = {}
    for i, entry in enumerate(section.entries):
        groups.setdefault((section.variants[i], entry.run["method"]["budget"]), []).append(i)
    lines = []
    for (variant, budget), members in groups.items():
        values = [grid.score(i)[0] for i in members]
        if len(members) > 1 and None not in values:
            name = variant + (f", {budget}" if budget else "")
            texts = (str(len(values)), f"{statistics.fmean(values):.1f}", f"{statistics.stdev(values):.1f}")
            lines.append([Cell(name), *map(Cell, texts)])
    columns = [Column("strategy, budget", False), *map(Column, ("seeds", "mean", "standard deviation"))]
    return Table("Over seeds: the best of a budget is chosen by these means", columns, lines) if lines else None
