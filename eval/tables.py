"""The comparison as a table on the terminal, as wide as it may be."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

PIPE_WIDTH = 160  # columns when the output is no terminal
PAPERS, SELECTION = "papers'\nFLOPs %", "selection\n% of prefill"
SHORT = {"vision": "vision", "selection": "select", "prefill": "prefill", "decode": "decode"}


def print_summary(summary: dict, output: Path, picture: Path, console: Console) -> None:
    """A table per task of the present runs, what failed, and where the files are."""
    if not console.is_terminal:
        console = Console(file=console.file, width=PIPE_WIDTH, force_terminal=False)
    runs = {run["name"]: run for run in summary["runs"]}
    for task, comparison in summary["comparison"].items():
        present = [runs[name] for name in summary["present"]]
        console.print(_fitting(console, task, present, comparison))
        _print_remarks(console, task, present)
    console.print(f"plot     {picture}", soft_wrap=True, highlight=False)
    console.print(f"results  {output}", soft_wrap=True, highlight=False)


def _fitting(console: Console, task: str, runs: list[dict], comparison: dict) -> Table:
    """The table with as many of the columns as the width allows: first the parts of the time go, then the kinds."""
    ascii_only = console.options.ascii_only
    rows = [_cells(run, run["tasks"][task], comparison.get(run["name"], {}), ascii_only) for run in runs]
    for run, row in zip(runs, rows, strict=True):
        row[SELECTION] = _selection(run, runs, task)
    kinds = list(runs[0]["tasks"][task]["metrics"]["groups"])
    parts = list(SHORT.values())
    less = [PAPERS, *parts]
    for left_out in (
        [],
        [PAPERS],
        less,
        [*less, *kinds],
        [*less, *kinds, "prefill\nFLOPs %", "ms per\nsample", SELECTION],
    ):
        table = _table(task, runs[0], rows, left_out, console.options.ascii_only)
        needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        if needed <= console.width:
            break
    return table


def _table(task: str, run: dict, rows: list[dict], left_out: list[str], ascii_only: bool) -> Table:
    result, batch = run["tasks"][task], run["generation"]["batch_size"]
    n = result["n"] + result["n_errors"]
    title = f"model {run['model']['id']}, task {task} ({result['split']}), {n} samples, batch size {batch}"
    table = Table(box=box.ASCII if ascii_only else box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    shown = [name for name in rows[0] if name not in left_out]
    for name in shown:
        table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row.get(name, "-") for name in shown))
    return table


def _cells(run: dict, result: dict, compared: dict, ascii_only: bool) -> dict[str, str]:
    """All columns of a run, in their order."""
    tokens, metrics, primary = result["tokens"], result["metrics"], result["primary"]
    sign = "+-" if ascii_only else "±"
    value, error = metrics[primary], metrics["macro_stderr" if primary == "macro" else "stderr"]
    mode = run["method"].get("downsample", {}).get("mode")
    seconds = {part: spread["median"] for part, spread in result["seconds"].items()}
    ms = {part: "-" if value is None else f"{1000 * value:.1f}" for part, value in seconds.items()}
    return {
        "strategy": run["method"]["name"] + (f" ({mode})" if mode else ""),
        "budget": run["method"]["budget"] or "",
        "visual\ntokens": f"{_number(tokens['visual_before'])} -> {_number(tokens['visual_average'])}",
        "kept %": _percent(tokens["kept"]),
        f"accuracy %\n({primary})": "-" if value is None else f"{100 * value:.1f} {sign} {100 * error:.1f}",
        "% of\nnone": _percent(compared.get("relative")),
        **{name: _percent(group["accuracy"]) for name, group in metrics["groups"].items()},
        "prefill\nFLOPs %": _percent(result["prefill_flops"]["ratio"]),
        PAPERS: _percent(result["paper_flops"]["ratio"]),
        "ms per\nsample": ms["total"],
        **{name: ms[part] for part, name in SHORT.items()},
    }


def _selection(run: dict, runs: list[dict], task: str) -> str:
    """Time of selection as a share of the prefill of the unpruned run, where it is in the table, else of its own."""
    base = next((other for other in runs if other["name"] == "none"), run)
    prefill = base["tasks"][task]["seconds"]["prefill"]["median"]
    selection = run["tasks"][task]["seconds"]["selection"]["median"]
    return "-" if not prefill or selection is None else f"{100 * selection / prefill:.1f}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _print_remarks(console: Console, task: str, runs: list[dict]) -> None:
    remarks = [f"downsample: {run['method']['downsample']['meaning']}" for run in runs if "downsample" in run["method"]]
    remarks = list(dict.fromkeys([*remarks, *(f"note: {note}" for run in runs for note in run["notes"])]))
    for run in runs:
        result = run["tasks"][task]
        if result["n_errors"]:
            remarks.append(
                f"{run['name']}: {result['n_errors']} samples FAILED, the first with {result['first_error']}"
            )
    for remark in remarks:
        console.print(remark, soft_wrap=True, highlight=False, markup=False)
