"""The list of benchmarks, as a table or as JSON."""

import json

from rich import box
from rich.table import Table

from vtc.eval.showing.console import PIPE_WIDTH
from vtc.eval.tasks import TASKS
from vtc.io.terminal import Terminal, say


def list_tasks(as_json: bool) -> None:
    """Prints the benchmarks."""
    tasks = []
    for name in TASKS:
        task = TASKS[name]
        source = None if task.source is None else {"ids": list(task.source.ids), "config": task.source.config}
        about = {"splits": list(task.splits), "primary": task.primary, "max_new_tokens": task.max_new_tokens}
        tasks.append({"name": name, "version": task.version, "source": source, **about})
    if as_json:
        say(json.dumps(tasks, indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "data on the hub", "splits", "figure"):
        table.add_column(column)
    for task in tasks:
        source = task["source"]
        place = "generated" if source is None else source["ids"][0]
        if source is not None and source["config"]:
            place += f" ({source['config']})"
        table.add_row(task["name"], place, ", ".join(task["splits"]), task["primary"])
    Terminal().wide(PIPE_WIDTH).print(table)
