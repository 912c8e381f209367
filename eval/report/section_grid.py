"""The measurements of a section: each run on each task, its cost, and its comparison with `none`, from sample logs.

Existing logs are read again, so that runs of different folders (the cells of a sweep) can be paired sample by sample;
without logs the figures of results.json are used, and there are no tests.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

from vtc.eval.report.measured import Measured, answers, first_token, kept, tokens
from vtc.eval.report.sections import ROUNDED, Section
from vtc.eval.report.significance import paired, replicates
from vtc.eval.results import statistics
from vtc.eval.results.compare import Beside, Reduced
from vtc.eval.tasks import TASKS

MOST_BUDGETS = 9


@dataclass
class BudgetGroup:
    """Runs that keep about the same. share: share of visual tokens kept, tokens: their number, both medians over the
    runs; best: index of the best run, None if no run can be ranked."""

    name: str
    share: float
    tokens: float | None
    members: list[int]
    best: int | None = None


@dataclass
class Grid:
    """A section's measurements. cells: by (index of the entry, task)."""

    section: Section
    cells: dict[tuple[int, str], Measured]
    budgets: list[BudgetGroup] = field(default_factory=list)
    replicates: int = 0
    tests: dict[str, tuple[int, int]] = field(default_factory=dict)  # per task: against none, against the best

    def of(self, i: int) -> list[Measured]:
        """The measurements of a run on all tasks."""
        return [self.cells[i, task] for task in self.section.tasks if (i, task) in self.cells]

    @cached_property
    def baseline(self) -> int | None:
        """The index of the entry that is `none`."""
        return next((i for i, entry in enumerate(self.section.entries) if entry.full), None)

    def score(self, i: int) -> tuple[float | None, float | None]:
        """The score that ranks runs, and its standard error: the primary figure times its scale or, with several
        tasks, the mean over them relative to `none` in per cent; None if a task is missing."""
        measured, tasks = self.of(i), self.section.tasks
        if len(measured) < len(tasks):
            return None, None
        if len(tasks) == 1:
            return _times(measured[0].value, measured[0].scale), _times(measured[0].figure["stderr"], measured[0].scale)
        averaged = self.average(i)
        if len(averaged["tasks"]) < len(tasks):
            return None, None
        return _times(averaged["value"], 100), _times(averaged["stderr"], 100)

    def average(self, i: int) -> dict:
        """The mean over tasks relative to `none`, see `statistics.average`."""
        return statistics.average({m.task: m.compared for m in self.of(i) if m.compared is not None})

    def variant_score(self, i: int) -> float | None:
        """The mean score of the runs that differ from this one only in the seed, including itself."""
        section, budget = self.section, self.section.entries[i].run["method"]["budget"]
        alike = [
            self.score(j)[0]
            for j, entry in enumerate(section.entries)
            if section.variants[j] == section.variants[i] and entry.run["method"]["budget"] == budget
        ]
        return None if None in alike else math.fsum(alike) / len(alike)

    def cost(self, i: int, of: Callable[[Measured], float | None]) -> float | None:
        """The mean of a cost over all tasks of the section; None if one is unknown."""
        costs = [of(m) for m in self.of(i)]
        return None if None in costs or len(costs) < len(self.section.tasks) else math.fsum(costs) / len(costs)


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def measure(section: Section) -> Grid:
    """Measures a section."""
    cells = {}
    for i, entry in enumerate(section.entries):
        for task in section.tasks:
            if task in entry.run["tasks"]:
                cells[i, task] = Measured(entry, task, entry.run["tasks"][task])
    grid = Grid(section, cells)
    logs = {key: answers(m) for key, m in cells.items()}
    for measured in cells.values():
        measured.first = first_token(measured)
    for task in section.tasks:
        _compare(grid, task, logs)
    grid.budgets = _budgets(grid)
    _test(grid, logs)
    return grid


def _compare(grid: Grid, task: str, logs: Mapping) -> None:
    """Compares every run with `none`, as `vtc eval` does for the runs of one folder."""
    base = grid.baseline
    if base is None or (base, task) not in grid.cells:
        return
    entries, beside = grid.section.entries, None
    rows = {i: logs[i, task] for i in range(len(entries)) if logs.get((i, task)) is not None}
    budget = {i: entry.run["method"]["budget"] for i, entry in enumerate(entries)}
    if base in rows:
        judge = TASKS[task](dialect=grid.section.conditions[task]["dialect"])
        reduced = [i for i in rows if entries[i].run["method"]["kind"] == "downsample"]
        share = {i: kept(grid.cells[i, task]) or 1.0 for i in reduced}
        labels = grid.section.labels
        beside = Beside(judge, rows[base], [Reduced(labels[i], budget[i], share[i], rows[i]) for i in reduced])
    for (i, name), measured in grid.cells.items():
        if name != task:
            continue
        if i in rows and beside is not None:
            measured.compared = beside.of(rows[i], budget[i])
        else:
            share = statistics.relative(measured.value, grid.cells[base, task].value)
            unknown = {"relative_stderr": None, "difference": None, "loyalty": None, "sensitive": None}
            measured.compared = {**unknown, **measured.entry.compared.get(task, {"relative": share})}


def _budgets(grid: Grid) -> list[BudgetGroup]:
    """Groups runs by requested budget; a run without one joins the group whose share is within 5 % of its own.

    With many budgets, as in a search over them, those within 5 % form one group.
    """
    groups: list[tuple[float, list[int]]] = []
    shares = {i: grid.cost(i, kept) or _mean(kept(m) for m in grid.of(i)) for i in range(len(grid.section.entries))}
    methods = [entry.run["method"] for entry in grid.section.entries]
    pruned = [i for i, entry in enumerate(grid.section.entries) if not entry.full and shares[i] is not None]
    by_keep = {}
    for i in pruned:
        if methods[i]["keep"] is not None:
            by_keep.setdefault(repr(methods[i]["keep"]), []).append(i)
    several = len(by_keep) <= MOST_BUDGETS
    groups += [(median(shares[i] for i in members), members) for members in by_keep.values() if several]
    for i in sorted((i for i in pruned if methods[i]["keep"] is None or not several), key=lambda i: shares[i]):
        near = [g for g in groups if abs(g[0] - shares[i]) <= ROUNDED * shares[i]]
        if near:
            min(near, key=lambda g: abs(g[0] - shares[i]))[1].append(i)
        else:
            groups.append((shares[i], [i]))
    budgets = []
    for share, members in sorted(groups, key=lambda g: (-g[0], g[1])):
        counts = [_mean(tokens(m) for m in grid.of(i)) for i in members]
        known = [count for count in counts if count is not None]
        number = median(known) if known else None
        budget = BudgetGroup(f"{100 * share:.3g} %", share, number, members)
        choice = [i for i in members if not grid.section.entries[i].blurred and grid.variant_score(i) is not None]
        budget.best = max(choice, key=lambda i: (grid.variant_score(i), -i)) if choice else None
        budgets.append(budget)
    return budgets


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _test(grid: Grid, logs: Mapping) -> None:
    """Tests every run against `none` and against the best of its budget, with corrections within each task."""
    best = {i: budget.best for budget in grid.budgets for i in budget.members if budget.best not in (None, i)}
    base = grid.baseline
    full = {i: base for i, entry in enumerate(grid.section.entries) if base is not None and not entry.full}
    grid.replicates = replicates(max(len(full), len(best)))
    for task in grid.section.tasks:
        task_logs = {i: rows for (i, name), rows in logs.items() if name == task}
        if not any(rows is not None for rows in task_logs.values()):
            continue
        judge = TASKS[task](dialect=grid.section.conditions[task]["dialect"])
        none, rivals = (paired(judge, task_logs, pairs, grid.replicates) for pairs in (full, best))
        for i, (p, corrected) in none.items():
            grid.cells[i, task].p_none, grid.cells[i, task].holm_none = p, corrected
        for i, (p, corrected) in rivals.items():
            grid.cells[i, task].p_best, grid.cells[i, task].holm_best = p, corrected
        grid.tests[task] = len(none), len(rivals)
