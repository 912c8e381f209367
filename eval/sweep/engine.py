"""`vtc sweep`: workers are started, what they finish is shown, and the end is drawn from the folder."""

import contextlib
import multiprocessing
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from vtc.errors import ConfigError
from vtc.eval.sweep.cells import DONE, Cell, Place, cell_of, check, planned
from vtc.eval.sweep.show import Board, dry_run, print_summary
from vtc.eval.sweep.space import draw, matches
from vtc.eval.sweep.spec import Spec, load_spec, read_spec

POLL = 0.5  # seconds between looks at what workers have finished
GRACE = 20  # seconds that workers have to end after an interrupt
SAMPLED = 30  # assignments of a search that are checked before it starts


@dataclass(frozen=True)
class Asked:
    """What the command line says. workers: processes started here; worker: only help others, conclude nothing."""

    output: Path
    workers: int = 1
    worker: bool = False
    dry_run: bool = False
    only: str | None = None
    max_cells: int | None = None
    device: str | None = None
    storage: str | None = None


def sweep(name: str, asked: Asked, console: Console | None = None) -> int:
    """Runs a sweep, or what is left of it; returns the number of failed cells. Raises ConfigError in one line."""
    spec = load_spec(name)
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if many and (asked.workers > 1 or asked.dry_run):
        raise ConfigError("--workers and --dry-run are not for accelerate launch; possible: neither of them")
    if asked.storage is not None and spec.mode != "search":
        raise ConfigError(f"--storage means nothing in mode {spec.mode}; possible: mode: search")
    if asked.only is not None and spec.mode == "search":
        raise ConfigError("--only means nothing in mode search; possible: a smaller space")
    cells = [cell for cell in planned(spec) if not cell.excluded and matches(asked.only, cell)]
    check(cells + _sampled(spec))
    if asked.dry_run:
        dry_run(spec, cells, asked, console or Console())
        return 0
    place = Place(asked.output)
    start = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        first = int(os.environ.get("RANK", "0")) == 0
        board = stack.enter_context(Board(spec, place, cells, start, silent=not first))
        if asked.workers > 1:
            _start_workers(spec, asked, cells, start, board)
        summary = _work(spec, place, asked, cells, start, board)
    if summary is not None:
        print_summary(summary, spec, asked.output, console or Console())
    return board.failed


def _sampled(spec: Spec) -> list[Cell]:
    """Some cells of a search, so that a wrong knob is found before it starts."""
    return [cell_of(spec, draw(spec.space, 0, i)) for i in range(SAMPLED if spec.mode == "search" else 0)]


def _work(spec: Spec, place: Place, asked: Asked, cells: list[Cell], start: str, board: Board) -> dict | None:
    """This process's part, and the end; None in processes beside the first, and for helpers."""
    from vtc.eval.sweep.work import Options, Worker

    most = board.left(asked.max_cells)
    options = Options(start, asked.device, asked.storage, most, wait=not asked.worker)
    worker = Worker(spec, place, options, board.finished)
    if not worker.processes.first:
        worker.follow()
        worker.processes.close()
        return None
    try:
        return _lead(worker, cells, asked)
    finally:
        worker.close()


def _lead(worker, cells: list[Cell], asked: Asked) -> dict | None:
    from vtc.eval.sweep.conclude import Findings, conclude
    from vtc.eval.sweep.study import Search

    spec, place, search = worker.spec, worker.place, None
    if spec.mode == "search":
        search = Search(spec, place, asked.storage)
        if not asked.worker:
            search.again()
    interrupted = True
    try:
        worker.cells(cells, wait=True if search else None)
        if search is not None:
            worker.search(search)
        interrupted = False
    finally:
        if interrupted and not asked.worker:
            conclude(Findings(spec, place, search))
    if asked.worker:
        return None
    return conclude(Findings(spec, place, search), None if worker.left == 0 else worker.cells)


def _start_workers(spec: Spec, asked: Asked, cells: list[Cell], start: str, board: Board) -> None:
    """Starts worker processes and waits for them, showing what they finish; what they leave is this process's."""
    context = multiprocessing.get_context("spawn")
    shares = [None] * asked.workers if asked.max_cells is None else list(_shares(asked.max_cells, asked.workers))
    todo = [cell for cell in cells if board.place.state(cell.id) != DONE]
    if spec.mode != "search" and len(todo) < 2:
        return
    given = [(spec.text, spec.name, replace(asked, max_cells=share), cells, start) for share in shares if share != 0]
    workers = [context.Process(target=_worker, args=one, name=str(i)) for i, one in enumerate(given, 1)]
    with _threads(asked.workers):
        for worker in workers:
            worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            time.sleep(POLL)
            board.look()
    except BaseException:
        until = time.monotonic() + GRACE
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
            worker.terminate()
        raise
    board.look()
    for worker in workers:
        if worker.exitcode not in (0, None):
            board.say(f"worker {worker.name} ended with exit code {worker.exitcode}; this process goes on")


def _shares(total: int, workers: int) -> Iterator[int]:
    for i in range(workers):
        yield total // workers + (i < total % workers)


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Workers divide the cores among them, unless the user has decided; more threads than cores are very slow."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // workers))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _worker(text: str, name: str, asked: Asked, cells: list[Cell], start: str) -> None:
    """A worker process: works silently and leaves the end to who started it."""
    from vtc.eval.sweep.study import Search
    from vtc.eval.sweep.work import Options, Worker

    spec, place = read_spec(text, name), Place(asked.output)
    worker = Worker(spec, place, Options(start, asked.device, asked.storage, asked.max_cells, wait=False))
    with contextlib.suppress(KeyboardInterrupt):
        worker.cells(cells, wait=True if spec.mode == "search" else None)
        if spec.mode == "search":
            worker.search(Search(spec, place, asked.storage))
