"""The head of a section: what was compared, the best run of each budget as cards or in a table, and warnings."""

from vtc.eval.report.blocks import Card, Cards, Cell, Column, Table, Text
from vtc.eval.report.measured import Measured
from vtc.eval.report.section_grid import BudgetGroup, Grid
from vtc.eval.report.sections import method_of
from vtc.eval.report.significance import ALPHA
from vtc.eval.report.tables import UNKNOWN, milliseconds, named, p_text, signed, with_error
from vtc.eval.showing.console import scaled, unit

MOST_CARDS = 9
MOST_NAMES = 6
MUST_AGREE = ("vtc", "torch", "transformers")


def title(grid: Grid) -> str:
    """The section's heading."""
    roles = {(entry.cell or {}).get("role") for entry in grid.section.entries}
    suffix = ", held out" if "heldout" in roles and "cell" not in roles else ""
    conditions = grid.section.conditions
    dialects = sorted({str(known["dialect"]) for known in conditions.values()})
    splits = sorted({str(known["split"]) for known in conditions.values()})
    about = f"{_words('dialect', dialects)}; {_words('split', splits)}"
    return f"Model {grid.section.model.get('id')}, {_words('task', list(conditions))} ({about}){suffix}"


def _words(name: str, values: list[str]) -> str:
    return f"{name}{'s' * (len(values) > 1)} {', '.join(values)}"


def lead(grid: Grid) -> Text:
    """The numbers of runs, methods and samples."""
    entries = grid.section.entries
    methods = {method_of(entry) for entry in entries if not entry.full}
    counts = []
    for task in grid.section.tasks:
        results = [m.result for m in grid.cells.values() if m.task == task]
        counts.append(f"{max(r['n'] + r['n_errors'] for r in results)} samples of {task}")
    number = f"{len(methods)} method{'s' * (len(methods) != 1)}"
    whole = "with the full model (none) beside them" if grid.baseline is not None else "WITHOUT the full model (none)"
    return Text(f"{len(entries)} runs of {number}, {whole}, on {', '.join(counts)}.", "lead")


def warnings(grid: Grid) -> list[Text]:
    """Warnings for readers who compare the runs."""
    runs = [entry.run for entry in grid.section.entries]
    notes = []
    for name in MUST_AGREE:
        versions = sorted({str(run["versions"].get(name)) for run in runs})
        if len(versions) > 1:
            notes.append(f"The runs have different versions of {name}: {', '.join(versions)}.")
    if len({run["git"] for run in runs}) > 1:
        notes.append("The runs come from different commits of vtc; see the table of runs below.")
    if len(sizes := sorted({run["generation"]["batch_size"] for run in runs})) > 1:
        notes.append(f"Times are not comparable: batches of {', '.join(map(str, sizes))} samples.")
    if len(kernels := sorted({str(run["kernels"]) for run in runs})) > 1:
        notes.append(f"The runs used different kernels: {', '.join(kernels)}.")
    failed = sum(m.result["n_errors"] for m in grid.cells.values())
    if failed:
        notes.append(f"{failed} samples failed; figures are over the others (†), comparisons over those both answered.")
    return [Text(text, "bad") for text in notes]


def best(grid: Grid) -> list:
    """The best run of each budget as cards, or as a table if there are many."""
    chosen = [budget for budget in grid.budgets if budget.best is not None]
    if not chosen:
        return []
    table = _table(grid, chosen)
    if len(chosen) > MOST_CARDS:
        return [table]
    full = [] if grid.baseline is None else [_full(grid, grid.baseline)]
    return [Cards([*full, *(_card(grid, budget) for budget in chosen)])]


def _full(grid: Grid, i: int) -> Card:
    tokens = {f"{m.result['tokens']['visual_before']:.0f}" for m in grid.of(i) if m.result["tokens"]["visual_before"]}
    lines = [f"{m.task}: {_score(m)}" for m in grid.of(i)] if len(grid.section.tasks) > 1 else []
    first = grid.cost(i, lambda m: m.first[0])
    lines.append(f"First token after {milliseconds(first)} ms." if first else "")
    count = f", {tokens.pop()} visual tokens" if len(tokens) == 1 else ""
    figure = _figure(grid, i) if len(grid.section.tasks) == 1 else "100 %"
    return Card(f"100 %{count}", "none (full model)", figure, [line for line in lines if line], None)


def _figure(grid: Grid, i: int) -> str:
    """The score by which runs are ranked, with its unit."""
    if len(grid.section.tasks) > 1:
        return f"{with_error(*grid.score(i))} % of none"
    (measured,) = grid.of(i)
    return f"{_score(measured)} {unit(measured.scale)}"


def _score(measured: Measured) -> str:
    return with_error(measured.value, measured.figure["stderr"], measured.scale)


def _card(grid: Grid, budget: BudgetGroup) -> Card:
    i = budget.best
    count = "" if budget.tokens is None else f", about {budget.tokens:.0f} visual tokens"
    series = grid.section.series().index(grid.section.series_of(i))
    lines = [_against_none(grid, i), _costs(grid, i), _rivals(grid, budget)]
    return Card(budget.name + count, grid.section.labels[i], _figure(grid, i), [line for line in lines if line], series)


def _against_none(grid: Grid, i: int) -> str:
    """How a run compares with the full model."""
    if len(grid.section.tasks) > 1:
        tested = [m for m in grid.of(i) if m.holm_none is not None]
        worse = [m.task for m in tested if m.holm_none < ALPHA and _gap(m) < 0]
        better = [m.task for m in tested if m.holm_none < ALPHA and _gap(m) > 0]
        if not tested:
            return ""
        changes = [f"below none on {', '.join(worse)}"] * bool(worse) + [f"above on {', '.join(better)}"] * bool(better)
        off = f"Significantly {' and '.join(changes)}."
        return off if changes else f"On no task significantly off none ({len(tested)} tests)."
    (measured,) = grid.of(i)
    if measured.relative is None:
        return ""
    share = f"{with_error(measured.relative, (measured.compared or {}).get('relative_stderr'), 100)} % of none"
    if measured.holm_none is None:
        return share + "."
    word = "significant" if measured.holm_none < ALPHA else "not significant"
    gap = signed((measured.compared or {})["difference"]["value"], measured.scale)
    return f"{share}; difference {gap}, {word} (p = {p_text(measured.holm_none)})."


def _gap(measured: Measured) -> float:
    return ((measured.compared or {}).get("difference") or {}).get("value") or 0.0


def _costs(grid: Grid, i: int) -> str:
    parts = []
    flops = grid.cost(i, lambda m: m.result["prefill_flops"]["ratio"])
    first = grid.cost(i, lambda m: m.first[0])
    base = None if grid.baseline is None else grid.cost(grid.baseline, lambda m: m.first[0])
    if flops is not None:
        parts.append(f"prefill FLOPs {scaled(flops, 100)} %")
    if first is not None:
        share = f" ({100 * first / base:.0f} % of none)" if base else ""
        parts.append(f"first token after {milliseconds(first)} ms{share}")
    text = ", ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def _rivals(grid: Grid, budget: BudgetGroup) -> str:
    """The runs that may be as good as the best."""
    variant = grid.section.variants[budget.best]
    rivals = [
        i for i in budget.members
        if grid.section.variants[i] != variant and not grid.section.entries[i].blurred
    ]  # fmt: skip
    tested = [i for i in rivals if any(m.holm_best is not None for m in grid.of(i))]
    if not tested:
        return ""
    alike = [i for i in tested if all(m.holm_best is None or m.holm_best >= ALPHA for m in grid.of(i))]
    if not alike:
        behind = f"all {len(tested)} other runs" if len(tested) > 1 else "the other run"
        return f"Significantly ahead of {behind}."
    alike.sort(key=lambda i: (-(grid.score(i)[0] or 0.0), i))
    names = list(dict.fromkeys(grid.section.variants[i] for i in alike))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"Not distinguishable from it: {', '.join(names[:MOST_NAMES])}{more}."


def _table(grid: Grid, chosen: list[BudgetGroup]) -> Table:
    """The best run of each budget, one row each."""
    columns = [Column("budget", False), Column("best run", False), Column("figure"), Column("against none", False),
               Column("costs", False), Column("rivals", False)]  # fmt: skip
    rows = [
        [Cell(budget.name), Cell(named(grid, budget.best), strong=True), Cell(_figure(grid, budget.best)),
         *(Cell(text or UNKNOWN) for text in (
             _against_none(grid, budget.best), _costs(grid, budget.best), _rivals(grid, budget)))]
        for budget in chosen
    ]  # fmt: skip
    return Table("The best run of each budget", columns, rows)
