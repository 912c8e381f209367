"""A worker: runs free cells until none is left, with one model in memory at a time.

Under `accelerate launch` all processes are one worker: they share each cell's samples, and the first one chooses the
cell. An error in a cell that all processes raise only fails that cell; any other error ends all of them, and the next
start runs that cell last.
"""

import gc
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vtc.core.errors import ConfigError, UnsupportedError, VtcError
from vtc.eval.models import Loaded, load
from vtc.eval.runner import evaluate
from vtc.eval.running.launch import Processes
from vtc.eval.sweep.cells import DONE, FAILED, Place, SweepCell, fixed_cells
from vtc.eval.sweep.spec import Spec
from vtc.eval.sweep.study import Search

ALIKE = (ConfigError, UnsupportedError)  # errors that all processes of a worker raise
NAP = 0.3  # seconds between checks of cells that others work on


@dataclass
class Options:
    """The options of a worker. start: identifies this start, in which a failed cell is not tried again. most: how many
    cells it may run, None for all. wait: whether to wait for cells that others work on."""

    start: str
    device: str | None = None
    storage: str | None = None
    most: int | None = None
    wait: bool = True


class Worker:
    """One worker, or its part in one of several processes. finished: called with each cell that has ended."""

    def __init__(
        self, spec: Spec, place: Place, options: Options, finished: Callable[[SweepCell], None] = lambda cell: None
    ):
        self.spec, self.place, self.options, self.finished = spec, place, options, finished
        self.processes = Processes()
        self.cells_left = options.most
        self._loaded: tuple[str, Loaded] | None = None

    def follow(self) -> None:
        """Takes part in the cells that the first process chooses, until it is done."""
        while (cell := self.processes.share()) is not None:
            try:
                self._evaluate(cell)
            except ALIKE:
                continue

    def close(self) -> None:
        """Lets the other processes end."""
        if self.processes.first:
            self.processes.share(None)
        self.processes.close()

    def cells(self, cells: Sequence[SweepCell], wait: bool | None = None) -> None:
        """Runs the cells that are not done, failed ones last; with `wait` also waits for those that others run."""
        wait = self.options.wait if wait is None else wait
        waiting = sorted(cells, key=lambda cell: self.place.state(cell.id) == FAILED)
        while waiting:
            waiting = [cell for cell in waiting if self._is_to_run(cell)]
            busy = [cell for cell in waiting if self.cells_left != 0 and not self._try(cell)]
            if not busy or not wait or self.cells_left == 0:
                return
            waiting = busy
            time.sleep(NAP)

    def search(self, search: Search) -> None:
        """Runs trials of the study and reports their results, until there are enough."""
        while self.cells_left != 0:
            with search.next() as claimed:
                if claimed is not None:
                    search.tell(claimed[0], self._trial(search, *claimed))
                    continue
            if not (self.options.wait and search.busy()):
                return
            time.sleep(NAP)

    def _trial(self, search: Search, trial, cell: SweepCell) -> dict | None:
        """The result of a trial: from the folder, from an equal trial elsewhere, or by running its cell now."""
        if self.place.state(cell.id) != DONE:
            attributes = search.elsewhere(cell.id)
            if attributes is not None:
                return {key: attributes[key] for key in KEPT}
        if self._is_to_run(cell):
            self.run(cell)
        return outcome(self.spec, self.place, cell) if self.place.state(cell.id) == DONE else None

    def _is_to_run(self, cell: SweepCell) -> bool:
        state = self.place.state(cell.id)
        return state != DONE and not (state == FAILED and self.place.error(cell.id)["start"] == self.options.start)

    def _try(self, cell: SweepCell) -> bool:
        """Runs a cell unless another worker does; returns whether it could be claimed."""
        with self.place.claim(cell.id) as claimed:
            if claimed and self._is_to_run(cell):
                self.run(cell)
            return claimed

    def run(self, cell: SweepCell) -> None:
        """Evaluates a claimed cell; errors are written to its folder."""
        self.cells_left = None if self.cells_left is None else self.cells_left - 1
        began, before = time.perf_counter(), self._samples(cell)
        self.place.write(cell)
        self.place.clear(cell.id)
        try:
            failed = self._share(cell)
            if failed:
                row = next(iter(self.place.run(cell.id)["tasks"].values()))
                raise ConfigError(f"{failed} samples failed, the first with {row['first_error']}")
        except Exception as error:
            line = f"{'' if isinstance(error, VtcError) else type(error).__name__ + ': '}{error}"
            line = " ".join(line.split())[:500]
            self.place.fail(cell, line, traceback.format_exc(), self.options.start)
            if self.processes.world > 1 and not isinstance(error, ALIKE):
                raise
        else:
            samples, seconds = self._samples(cell), time.perf_counter() - began
            now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
            self.place.write(
                cell, finished=now, samples=samples, fresh=samples - before, seconds=seconds, worker=os.getpid()
            )
        self.finished(cell)

    def _share(self, cell: SweepCell) -> int:
        self.processes.share(cell)
        return self._evaluate(cell)

    def _evaluate(self, cell: SweepCell) -> int:
        loaded = self._model(cell)
        settings = cell.settings(self.place.of(cell.id), self.options.device)
        return evaluate(settings, loaded=loaded, quiet=True, processes=self.processes)

    def _model(self, cell: SweepCell) -> Loaded:
        """The model of a cell, kept in memory until a cell needs another one."""
        key = repr((cell.params["model"], cell.params["model_args"]))
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            device = self.processes.device(self.options.device)
            self._loaded = key, load(cell.params["model"], dict(cell.params["model_args"]), device)
        return self._loaded[1]

    def _samples(self, cell: SweepCell) -> int:
        logs = (self.place.of(cell.id) / "samples").glob("*.jsonl")
        return sum(max(0, log.read_bytes().count(b"\n") - 1) for log in logs)


KEPT = ("raw", "excess", "samples", "seconds", "resolved", "run")  # attributes of a trial about its cell


def outcome(spec: Spec, place: Place, cell: SweepCell) -> dict:
    """The result of a finished cell: `raw` figures per aim, `excess` over budgets, and what other machines need."""
    run, known = place.run(cell.id), place.read(cell.id)
    base = place.run(fixed_cells(spec)[0].id).get("tasks") if any(o.figure == "relative" for o in spec.aims) else None
    tasks = run["tasks"]
    return {
        "raw": [objective.measure(tasks, base) for objective in spec.aims],
        "excess": [o.excess(tasks) for o in spec.objectives if o.budget is not None] or [0.0],
        "samples": known["samples"],
        "seconds": known["seconds"],
        "resolved": run["method"]["resolved"],
        "run": run["name"],
    }
