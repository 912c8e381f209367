"""The comparison as tables that fit the terminal: one per task, and one over all tasks as in papers."""

from pathlib import Path

from rich import box
from rich.measure import Measurement
from rich.table import Table

from vtc.io.terminal import Terminal

PIPE_WIDTH = 160  # columns, if the output is not a terminal
MOST_CATEGORIES = 8  # columns for kinds of question; with more kinds they are left out
NAME, BUDGET, TOKENS, KEPT, RELATIVE = "strategy", "budget", "visual\ntokens", "kept %", "% of\nnone"
LOYALTY, SENSITIVE = "loyalty\n%", "sensi-\ntive %"
PREFILL, PAPERS, TOTAL, SELECTION = "prefill\nFLOPs %", "papers'\nFLOPs %", "ms per\nsample", "selection\n% of prefill"
SHORT = {"vision": "vision", "selection": "select", "prefill": "prefill", "decode": "decode"}
AVERAGE = "avg\n% of none"


def print_summary(summary: dict, output: Path, picture: Path, console: Terminal) -> None:
    """Prints a table per task and failures, a table over all tasks, remarks, and the paths of the files."""
    console = console.wide(PIPE_WIDTH)
    runs = {run["name"]: run for run in summary["runs"]}
    present = [runs[name] for name in summary["present"]]
    for task, comparison in summary["comparison"].items():
        task_runs = [run for run in present if task in run["tasks"]]
        console.print(_fitting(console, task, task_runs, comparison))
        for run in task_runs:
            result = run["tasks"][task]
            if result["n_errors"]:
                failures = f"{result['n_errors']} samples FAILED, the first with {result['first_error']}"
                console.say(f"{run['name']}: {failures}")
            for remark in result.get("remarks", ()):
                console.say(f"{run['name']}: {remark}")
    if len(summary["comparison"]) > 1:
        for table in _over_tasks(console, list(summary["comparison"]), present, summary["average"]):
            console.print(table)
    _print_remarks(console, present)
    console.say(f"plot     {picture}")
    console.say(f"results  {output}")


def scaled(value: float | None, scale: float) -> str:
    """A figure as printed, with one decimal place; - if it is unknown."""
    return "-" if value is None else f"{scale * value:.1f}"


def unit(scale: float) -> str:
    """The unit of a figure times its scale."""
    return {100: "%", 1: "points"}.get(scale, f"of {scale:g}")


def _fits(console: Terminal, table: Table) -> bool:
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width


def _fitting(console: Terminal, task: str, runs: list[dict], comparison: dict) -> Table:
    """The table with as many columns as the width allows.

    The parts of the time are left out first, then the agreement with `none`, then the kinds of question.
    """
    ascii_only = console.options.ascii_only
    rows = [_cells(run, run["tasks"][task], comparison.get(run["name"], {}), ascii_only) for run in runs]
    for run, row in zip(runs, rows, strict=True):
        row[SELECTION] = _selection(run, runs, task)
    kinds = list(_kinds(runs[0]["tasks"][task]))
    always = [name for name in (LOYALTY, SENSITIVE) if all(row[name] == "-" for row in rows)]
    always += kinds if len(kinds) > MOST_CATEGORIES else []
    less = [*always, PAPERS]
    times = [*less, *SHORT.values()]
    agreement = [*times, LOYALTY, SENSITIVE]
    least = [*agreement, *kinds, SELECTION]
    cost = [*least, PREFILL, TOTAL]
    for left_out in (
        always, less, times, agreement, [*times, *kinds], [*agreement, *kinds], least, cost, [*cost, TOKENS],
        [*cost, TOKENS, KEPT],
    ):  # fmt: skip
        table = _table(task, runs[0], rows, left_out, ascii_only)
        if _fits(console, table):
            break
    return table


def _new_table(title: str, ascii_only: bool) -> Table:
    style = box.ASCII if ascii_only else box.SIMPLE_HEAD
    return Table(box=style, title=title, title_justify="left", pad_edge=False)


def _table(task: str, run: dict, rows: list[dict], left_out: list[str], ascii_only: bool) -> Table:
    result, batch = run["tasks"][task], run["generation"]["batch_size"]
    n = result["n"] + result["n_errors"]
    details = f"dialect {result['dialect']}, {result['split']}"
    title = f"model {run['model']['id']}, task {task} ({details}), {n} samples, batch size {batch}"
    table = _new_table(title, ascii_only)
    shown = [name for name in rows[0] if name not in left_out]
    for name in shown:
        table.add_column(name, justify="left" if name == NAME else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row.get(name, "-") for name in shown))
    return table


def _cells(run: dict, result: dict, compared: dict, ascii_only: bool) -> dict[str, str]:
    """All cells of a run by column, in order."""
    tokens, primary, scale = result["tokens"], result["primary"], result["scale"]
    seconds = {part: spread["median"] for part, spread in result["seconds"].items()}
    ms = {part: "-" if value is None else f"{1000 * value:.1f}" for part, value in seconds.items()}
    return {
        **_name(run),
        TOKENS: f"{_number(tokens['visual_before'])} -> {_number(tokens['visual_average'])}",
        KEPT: _percent(tokens["kept"]),
        f"{primary}\n{unit(scale)}": _with_error(result["figures"].get(primary, {}), scale, ascii_only),
        RELATIVE: _percent(compared.get("relative")),
        LOYALTY: _percent(compared.get("loyalty")),
        SENSITIVE: _percent((compared.get("sensitive") or {}).get("value")),
        **_kinds(result),
        PREFILL: _percent(result["prefill_flops"]["ratio"]),
        PAPERS: _percent(result["paper_flops"]["ratio"]),
        TOTAL: ms["total"],
        **{name: ms[part] for part, name in SHORT.items()},
    }


def _kinds(result: dict) -> dict[str, str]:
    """Figures per kind of question: in points if the task uses these, else in per cent."""
    scale = 1 if result["scale"] == 1 else 100
    return {f"{name}\n{unit(scale)}": scaled(kind["value"], scale) for name, kind in result["categories"].items()}


def _name(run: dict) -> dict[str, str]:
    mode = run["method"].get("downsample", {}).get("mode")
    return {NAME: run["method"]["name"] + (f" ({mode})" if mode else ""), BUDGET: run["method"]["budget"] or ""}


def _with_error(figure: dict, scale: float, ascii_only: bool) -> str:
    error, sign = figure.get("stderr"), "+-" if ascii_only else "±"
    return scaled(figure.get("value"), scale) + ("" if error is None else f" {sign} {scaled(error, scale)}")


def _selection(run: dict, runs: list[dict], task: str) -> str:
    """Time of selection as a share of the unpruned run's prefill, or of its own if the table has no unpruned run."""
    base = next((other for other in runs if other["name"] == "none"), run)
    prefill = base["tasks"][task]["seconds"]["prefill"]["median"]
    selection = run["tasks"][task]["seconds"]["selection"]["median"]
    return "-" if not prefill or selection is None else f"{100 * selection / prefill:.1f}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return scaled(value, 100)


def _over_tasks(console: Terminal, tasks: list[str], runs: list[dict], averages: dict) -> list[Table]:
    """Scores of all tasks and their average as in papers; in several tables if one would be too wide."""
    ascii_only = console.options.ascii_only
    for size in range(len(tasks), 0, -1):
        parts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        tables = [_scores(part, tasks, runs, averages, ascii_only) for part in parts]
        if all(_fits(console, table) for table in tables):
            break
    return tables


def _scores(shown: list[str], tasks: list[str], runs: list[dict], averages: dict, ascii_only: bool) -> Table:
    results = {task: next(run["tasks"][task] for run in runs if task in run["tasks"]) for task in shown}
    dialects = {result["dialect"] for run in runs for name, result in run["tasks"].items() if name in tasks}
    plural = "s" if len(dialects) > 1 else ""
    details = f"dialect{plural} {', '.join(sorted(dialects))}"
    table = _new_table(f"model {runs[0]['model']['id']}, {len(tasks)} tasks ({details})", ascii_only)
    for name in (NAME, BUDGET):
        table.add_column(name, justify="left" if name == NAME else "right", no_wrap=True)
    for task, result in results.items():
        head = "\n".join((task, result["split"], result["primary"], unit(result["scale"])))
        table.add_column(head, justify="right", no_wrap=True)
    last = shown[-1] == tasks[-1]
    if last:
        table.add_column(AVERAGE, justify="right", no_wrap=True)
    for run in runs:
        cells = [_score(run["tasks"].get(task)) for task in shown]
        average = [_average(averages.get(run["name"]), len(tasks), ascii_only)] if last else []
        table.add_row(*_name(run).values(), *cells, *average)
    return table


def _score(result: dict | None) -> str:
    if result is None:
        return "-"
    return scaled(result["figures"].get(result["primary"], {}).get("value"), result["scale"])


def _average(entry: dict | None, tasks: int, ascii_only: bool) -> str:
    """The average, with its number of tasks if some are missing."""
    if entry is None or entry["value"] is None:
        return "-"
    coverage = "" if len(entry["tasks"]) == tasks else f" ({len(entry['tasks'])} of {tasks})"
    return _with_error(entry, 100, ascii_only) + coverage


def _print_remarks(console: Terminal, runs: list[dict]) -> None:
    """Prints how pictures were downsampled, and the notes of the patches, each once."""
    remarks = [f"downsample: {run['method']['downsample']['meaning']}" for run in runs if "downsample" in run["method"]]
    for remark in dict.fromkeys([*remarks, *(f"note: {note}" for run in runs for note in run["notes"])]):
        console.say(remark)
