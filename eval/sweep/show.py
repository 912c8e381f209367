"""The output of a sweep: the dry run, progress, and the tables at its end."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from vtc.eval.sweep.cells import DONE, FAILED, Place, SweepCell
from vtc.eval.sweep.objectives import Objective
from vtc.eval.sweep.spec import Spec
from vtc.io.terminal import Terminal, bar

PIPE_WIDTH = 160  # columns, if the output is not a terminal
POLL = 0.5  # seconds between checks of what other processes have finished
MOST_ROWS = 25  # of the Pareto set


class Board:
    """Counts finished cells on stderr: a bar on a terminal, otherwise a line per cell.

    watch: continually checks what other processes finish.
    """

    def __init__(
        self,
        spec: Spec,
        place: Place,
        cells: Sequence[SweepCell],
        start: str,
        silent: bool = False,
        watch: bool = False,
    ):
        self.spec, self.place, self.start, self.silent = spec, place, start, silent
        self.cells = {cell.id: cell for cell in cells}
        self.console = Terminal(stderr=True)
        self.failed = 0
        self._lock, self._over = threading.RLock(), threading.Event()
        self._watch = threading.Thread(target=self._looking, daemon=True) if watch else None
        self._reported = {cell.parent.name for cell in (place.folder / "cells").glob("*/cell.json")
                      if place.state(cell.parent.name) == DONE}  # fmt: skip
        self.done = len(self._reported & set(self.cells)) if spec.mode != "search" else len(self._reported)
        self.total = len(cells) + (spec.trials if spec.mode == "search" else 0)
        self.bar = bar(self.console, hidden=silent or not self.console.is_terminal)

    def __enter__(self) -> "Board":
        self.bar.start()
        self.task = self.bar.add_task(f"vtc sweep {self.spec.name}", total=self.total, completed=self.done)
        if self._watch:
            self._watch.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        if self._watch:
            self._watch.join()
        self.bar.stop()

    def _looking(self) -> None:
        while not self._over.wait(POLL):
            self.look()

    def say(self, line: str) -> None:
        """Prints a line."""
        if not self.silent:
            self.console.say(f"vtc sweep: {line}")

    def finished(self, cell: SweepCell) -> None:
        """Counts a cell that has ended, with or without an error."""
        with self._lock:
            if cell.id not in self._reported:
                self._reported.add(cell.id)
                self._count(cell)

    def _count(self, cell: SweepCell) -> None:
        error = self.place.error(cell.id)
        self.failed += bool(error)
        self.done += not error
        self.total = max(self.total, self.done)
        self.bar.update(self.task, completed=self.done, total=self.total, description=cell.full_label(self.spec))
        if error:
            self.say(f"{cell.full_label(self.spec)} FAILED: {error['error']}")
        elif not self.console.is_terminal:
            seconds = self.place.read(cell.id)["seconds"]
            self.say(f"{self.done}/{self.total} {cell.full_label(self.spec)}: {self._figure(cell)}, {seconds:.1f} s")

    def _figure(self, cell: SweepCell) -> str:
        tasks = self.place.run(cell.id)["tasks"]
        shown = []
        for name, result in tasks.items():
            value = result["figures"].get(result["primary"], {}).get("value")
            number = "-" if value is None else f"{result['scale'] * value:.1f}"
            shown.append(f"{result['primary']} {number}" if len(tasks) == 1 else f"{name} {number}")
        return ", ".join(shown)

    def look(self) -> None:
        """Counts what other processes have finished."""
        for file in sorted((self.place.folder / "cells").glob("*/cell.json"), key=lambda f: f.stat().st_mtime):
            ident = file.parent.name
            if ident not in self._reported:
                known = self.place.read(ident)
                over = self.place.state(ident) == DONE or self.place.error(ident).get("start") == self.start
                if known and over:
                    self.finished(self.cells.get(ident) or SweepCell(known["params"]))


def dry_run(spec: Spec, cells: Sequence[SweepCell], asked, console: Terminal) -> None:
    """Prints what would run, and an estimate of the time."""
    place = _Nothing(asked.output)
    states = {cell.id: place.state(cell.id) for cell in cells}
    for cell in cells:
        line = f"{states[cell.id]:8} {cell.id}  {cell.full_label(spec)}"
        console.say(line)
    done = [cell for cell in cells if states[cell.id] == DONE]
    remaining, content = len(cells) - len(done), f"{len(cells)} cells"
    if spec.mode == "search":
        finished_trials = len(place.finished() - set(states))
        remaining += max(0, spec.trials - finished_trials)
        content = f"{len(cells)} fixed cells and {spec.trials} trials ({spec.sampler}), {finished_trials} of these done"
    if asked.max_cells is not None:
        remaining = min(remaining, asked.max_cells)
    failed = sum(state == FAILED for state in states.values())
    lines = [f"sweep {spec.name}, mode {spec.mode}: {content}; {len(done)} done, {failed} failed, {remaining} to run"]
    if spec.heldout is not None:
        lines.append(f"held out: 3 cells on split {spec.heldout.split}")
        remaining += 3
    samples = _samples(spec, place)
    lines.append(f"samples: {samples[0]} per cell ({', '.join(spec.tasks)}){samples[1]}")
    rates = [(row["seconds"], row["fresh"]) for ident in place.finished() if (row := place.read(ident)).get("fresh")]
    if not remaining:
        lines.append("estimate: nothing is left to run")
    elif rates and isinstance(samples[0], int):
        each = sum(seconds for seconds, _ in rates) / sum(fresh for _, fresh in rates)
        minutes = each * samples[0] * remaining / asked.workers / 60
        lines.append(f"estimate: {minutes:.1f} min on {asked.workers} worker(s), at {each:.3f} s per sample of "
                     f"{len(rates)} finished cells")  # fmt: skip
    else:
        lines.append("estimate: none, no cell is finished yet")
    for line in lines:
        console.say(line)


class _Nothing(Place):
    """The folder of a sweep, opened without creating anything."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def finished(self) -> set[str]:
        """The ids of the finished cells."""
        idents = {file.parent.name for file in (self.folder / "cells").glob("*/cell.json")}
        return {ident for ident in idents if self.state(ident) == DONE}


def _samples(spec: Spec, place: _Nothing) -> tuple[int | str, str]:
    limit = spec.settings.get("limit")
    known = [place.read(ident)["samples"] for ident in place.finished()]
    if known:
        return max(known), ""
    if limit is None:
        return "all", ", no limit is set"
    return limit * len(spec.tasks), ""


def print_summary(summary: Mapping, spec: Spec, output: Path, console: Terminal) -> None:
    """Prints the Pareto set, the best cells, failures, the held-out comparison, and the paths of the files."""
    console = console.wide(PIPE_WIDTH)
    say = console.say
    rows = {row["id"]: row for row in summary["cells"]}
    cells = {ident: SweepCell(row["params"], row["role"]) for ident, row in rows.items()}
    if len(spec.aims) > 1 and summary["pareto"]:
        front = summary["pareto"][:MOST_ROWS]
        names = [aim.name.partition("@")[0] for aim in spec.aims]
        table = _table(f"{spec.name}: Pareto set ({len(summary['pareto'])} of {len(rows)} cells)", names, console)
        for ident in front:
            values = [_of_aim(rows[ident]["values"], aim, spec) for aim in spec.aims]
            table.add_row(cells[ident].full_label(spec), *map(_number, values, spec.aims))
        console.print(table)
    if summary["best"]:
        table = _table(f"{spec.name}: best", ["value", "file"], console, first="objective", second="strategy")
        objectives = {objective.name: objective for objective in spec.objectives}
        for row in summary["best"]:
            value = _number(row["values"][row["objective"]], objectives[row["objective"]])
            table.add_row(row["objective"], cells[row["cell"]].full_label(spec), value, row["yaml"])
        console.print(table)
    for objective, shares in ((summary["search"] or {}).get("importance") or {}).items():
        say(f"importance for {objective}: {', '.join(f'{name} {100 * share:.0f} %' for name, share in shares.items())}")
    if summary["heldout"] is not None:
        say(_heldout(summary["heldout"], spec))
    failed = [row for row in rows.values() if row["state"] == FAILED]
    for row in failed:
        say(f"FAILED {cells[row['id']].full_label(spec)}: {row['error']} ({output}/cells/{row['id']}/traceback.txt)")
    counts = {state: sum(row["state"] == state for row in rows.values()) for state in dict.fromkeys(
        row["state"] for row in rows.values())}  # fmt: skip
    say(f"cells    {', '.join(f'{count} {state}' for state, count in counts.items())}")
    say(f"results  {output}")


def _of_aim(values: Mapping, aim: Objective, spec: Spec) -> float | None:
    """The value of an aim, from the first of its objectives that has one."""
    same = [o.name for o in spec.objectives if (o.figure, o.task) == (aim.figure, aim.task)]
    return next((values[name] for name in same if values[name] is not None), None)


def _table(title: str, columns: list[str], console: Terminal, first: str = "strategy", second: str = "") -> Table:
    style = box.ASCII if console.options.ascii_only else box.SIMPLE_HEAD
    table = Table(box=style, title=title, title_justify="left", pad_edge=False)
    for name in filter(None, (first, second)):
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="left" if name == "file" else "right", no_wrap=True)
    return table


def _number(value: float | None, objective: Objective) -> str:
    if value is None:
        return "-"
    if objective.figure == "prefill_flops":
        return f"{value:.3g}"
    return f"{value:.4f}" if objective.figure != "tokens" else f"{value:.1f}"


def _heldout(heldout: Mapping, spec: Spec) -> str:
    search_values, heldout_values, gap = heldout["search_split"], heldout["heldout_split"], heldout["difference"]
    objective = next(o for o in spec.objectives if o.name == heldout["objective"])

    def pair(values: Mapping) -> str:
        return f"best {_number(values['best'], objective)}, reference {_number(values['reference'], objective)}"

    if None in heldout_values.values():
        return f"held out ({heldout['split']}): not run yet"
    error = "" if gap["stderr"] is None else f" ± {gap['stderr']:.4f} (paired bootstrap, p = {gap['p']:.3f})"
    verdict = "holds" if heldout["holds"] else "does NOT hold"
    return (
        f"{objective.name}: {pair(search_values)} where it was searched; held out ({heldout['split']}): "
        f"{pair(heldout_values)}, difference {gap['value']:+.4f}{error}: it {verdict}"
    )
