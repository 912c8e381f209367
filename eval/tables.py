"""The comparison as a table on the terminal, as wide as it may be."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

PIPE_WIDTH = 160  # columns when the output is no terminal


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
    """The table with as many of the optional columns as the width allows."""
    for groups, split in ((True, True), (True, False), (False, True), (False, False)):
        table = _table(task, runs, comparison, groups, split, console.options.ascii_only)
        needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        if needed <= console.width:
            break
    return table


def _table(task: str, runs: list[dict], comparison: dict, groups: bool, split: bool, ascii_only: bool) -> Table:
    first = runs[0]["tasks"][task]
    batch = runs[0]["generation"]["batch_size"]
    n = first["n"] + first["n_errors"]
    title = f"{runs[0]['model']['id']} on {task} ({first['split']}), {n} samples, batch size {batch}"
    table = Table(box=box.ASCII if ascii_only else box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("strategy")
    names = list(first["metrics"]["groups"]) if groups else []
    numbers = ["keep", "visual tokens", f"{first['primary']} %", "of none %", *names, "prefill FLOPs %", "ms/sample"]
    for name in [*numbers, *(["vision", "select", "prefill", "decode"] if split else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(*_cells(run, run["tasks"][task], comparison.get(run["name"], {}), names, split, ascii_only))
    return table


def _cells(run: dict, result: dict, compared: dict, groups: list[str], split: bool, ascii_only: bool) -> list[str]:
    tokens, metrics, primary = result["tokens"], result["metrics"], result["primary"]
    sign = "+-" if ascii_only else "±"
    value, error = metrics[primary], metrics["macro_stderr" if primary == "macro" else "stderr"]
    mode = run["method"].get("downsample", {}).get("mode")
    kinds = [metrics["groups"].get(name, {}).get("accuracy") for name in groups]
    seconds = {part: spread["median"] for part, spread in result["seconds"].items()}
    parts = ["vision", "selection", "prefill", "decode"] if split else []
    return [
        run["method"]["name"] + (f" ({mode})" if mode else ""),
        "" if run["method"]["keep"] is None else str(run["method"]["keep"]),
        f"{_number(tokens['visual_before'])} -> {_number(tokens['visual_after'])}",
        "-" if value is None else f"{100 * value:.1f} {sign} {100 * error:.1f}",
        _percent(compared.get("relative")),
        *map(_percent, kinds),
        _percent(result["prefill_flops"]["ratio"]),
        *["-" if seconds[part] is None else f"{1000 * seconds[part]:.1f}" for part in ["total", *parts]],
    ]


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
