"""The plots of a section, with descriptions and tables of the plotted numbers."""

from collections.abc import Callable
from dataclasses import dataclass

from vtc.eval.report import plots
from vtc.eval.report.blocks import Cell, Column, Figure, Table
from vtc.eval.report.measured import Measured, kept, tokens
from vtc.eval.report.plots import Axes, Point
from vtc.eval.report.section_grid import Grid
from vtc.eval.report.tables import UNKNOWN, milliseconds, named, with_error
from vtc.eval.showing.chart import LONG
from vtc.eval.showing.console import unit

NEAR = 0.1  # the largest relative loss shown in the close-up


@dataclass(frozen=True)
class Cost:
    """One kind of cost. of: its value for a run on a task, plotted times `factor`; error: its standard error, or None;
    text: formats a value; log: logarithmic axis with a tick for each budget."""

    name: str
    axis: str
    of: Callable[[Measured], float | None]
    text: Callable[[float, float | None], str]
    factor: float = 1.0
    error: Callable[[Measured], float | None] | None = None
    log: bool = False
    equivalent: bool = False  # blurred pictures are plotted at the number of tokens with as much information


def _plain(value: float, error: float | None) -> str:
    return f"{value:.4g}"


def _share(value: float, error: float | None) -> str:
    return f"{value:.1f} %"


def _ms(value: float, error: float | None) -> str:
    return milliseconds(value / 1000, None if error is None else error / 1000) + " ms"


def _flops(measured: Measured) -> float | None:
    return measured.result["prefill_flops"]["ratio"]


TOKENS = Cost("visual tokens", "visual tokens (mean per layer and sample)", tokens, _plain, log=True, equivalent=True)
KEPT = Cost("visual tokens kept", "visual tokens kept, % (mean over tasks)", kept, _share, 100, log=True,
            equivalent=True)  # fmt: skip
TIME = Cost("time to first token", "time to first token, ms (median)", lambda m: m.first[0], _ms, 1000,
            lambda m: m.first[1])  # fmt: skip
FLOPS = Cost("prefill FLOPs", "prefill FLOPs of the language model, % of none", _flops, _share, 100)


def points(grid: Grid, cost: Cost, task: str | None) -> list[Point]:
    """The runs whose figure and cost are known. task: None for the mean over tasks relative to `none`."""
    section, plotted = grid.section, []
    series = section.series()
    for i, entry in enumerate(section.entries):
        value, error, x, x_error = _figures(grid, i, cost, task)
        if value is None or x is None:
            continue
        hollow = entry.blurred and cost.equivalent
        costs = cost.text(x, x_error) + (" (equivalent; all tokens are used)" if hollow else "")
        tip = f"{named(grid, i)}: {with_error(value, error)} at {costs}"
        place = None if entry.full else series.index(section.series_of(i))
        plotted.append(Point(named(grid, i), place, section.labels[i], x, value, x_error, error, tip, hollow))
    return plotted


def _figures(grid: Grid, i: int, cost: Cost, task: str | None) -> tuple:
    """Figure, its error, cost, its error, in the units of the plot."""
    if task is None:
        (value, error), x = grid.score(i), grid.cost(i, cost.of)
        return value, error, None if x is None else x * cost.factor, None
    measured = grid.cells.get((i, task))
    if measured is None or measured.value is None:
        return None, None, None, None
    x, x_error = cost.of(measured), cost.error and cost.error(measured)
    stderr = measured.figure["stderr"]
    return (
        measured.value * measured.scale, None if stderr is None else stderr * measured.scale,
        None if x is None else x * cost.factor, None if x_error is None else x_error * cost.factor,
    )  # fmt: skip


def against(grid: Grid, cost: Cost, task: str | None, prefix: str, near: bool = False) -> Figure | None:
    """Figure against cost, with its Pareto front; None if fewer than two runs have both.

    near: only the runs that lose no more than a tenth, so that they can be told apart; None if that leaves out nothing
    or leaves only two runs.
    """
    known = points(grid, cost, task)
    full = next((point for point in known if point.series is None), None)
    title = f"{'Mean over tasks' if task is None else task} against {cost.name}"
    if near:
        reference = full.y if full else max((point.y for point in known), default=0.0)
        close = [point for point in known if point.y >= (1 - NEAR) * reference]
        if len(close) in (2, len(known)):
            return None
        known, title = close, f"{title}, up close"
    if len(known) < 2:
        return None
    y = "mean over tasks, % of none" if task is None else _axis(grid, task)
    scale = 100.0 if task is None else next(m.scale for m in grid.cells.values() if m.task == task)
    limits = (-0.02 * scale, None if task is None else 1.02 * scale) if scale != 1 else (None, None)
    axes = Axes(cost.axis, y, cost.log, full.x if full and cost is TOKENS else None, limits, 1.022 if near else 1.012)
    best = plots.on_front(known)
    alt = _message(known, best, full, title)
    says = "Pareto front: " + " → ".join(known[i].label for i in best) + "."
    return Figure(plots.scatter(known, axes, prefix, alt), title, says, alt, _table(known, best, y, cost, title))


def _axis(grid: Grid, task: str) -> str:
    result = next(m.result for m in grid.cells.values() if m.task == task)
    figure = LONG.get(result["primary"], result["primary"].replace("_", " "))
    return f"{figure}, {unit(result['scale'])}"


def _message(known: list[Point], best: list[int], full: Point | None, title: str) -> str:
    """The plot in words: the full model, then the front from cheapest to most expensive."""
    parts = [f"{title}, {len(known)} runs; bars are 1 standard error."]
    if full is not None:
        parts.append(f"The full model (dashed line): {full.tip.partition(': ')[2]}.")
    shown = [known[i] for i in best if known[i].series is not None]
    if shown:
        tips = "; ".join(point.tip for point in shown)
        parts.append(f"On the Pareto front (rings, grey steps), from cheapest to most expensive: {tips}.")
    return " ".join(parts)


def _table(known: list[Point], best: list[int], y: str, cost: Cost, title: str) -> Table:
    columns = [Column("run", False), Column(cost.name), Column(y), Column("on the front", False)]
    rows = [
        [
            Cell(point.label), Cell(cost.text(point.x, point.x_error) + (" (equivalent)" if point.hollow else "")),
            Cell(with_error(point.y, point.y_error)),
            Cell("yes" if i in best else "no" if not point.hollow else UNKNOWN),
        ]
        for i, point in enumerate(known)
    ]  # fmt: skip
    return Table(f"Numbers of the plot: {title}", columns, rows)
