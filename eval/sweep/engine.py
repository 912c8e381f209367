"""`vtc sweep`: runs cells in this process, optionally with helper processes, and concludes from the folder."""

import contextlib
import multiprocessing
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vtc.core.errors import ConfigError
from vtc.eval.report import report
from vtc.eval.sweep.cells import DONE, FAILED, Place, SweepCell, cell_of, check, planned
from vtc.eval.sweep.show import Board, dry_run, print_summary
from vtc.eval.sweep.space import chosen, draw
from vtc.eval.sweep.spec import Spec, load_spec, read_spec
from vtc.io.terminal import Terminal

SAMPLED = 30  # assignments of a search that are checked before it starts


@dataclass(frozen=True)
class Asked:
    """The options of the command line. workers: the number of processes on this machine, including this one; worker:
    only help other processes, without concluding."""

    output: Path
    workers: int = 1
    worker: bool = False
    dry_run: bool = False
    only: str | None = None
    max_cells: int | None = None
    device: str | None = None
    storage: str | None = None


def sweep(name: str, asked: Asked, console: Terminal | None = None) -> int:
    """Runs a sweep, or the rest of it; returns the number of failed cells. Raises ConfigError in one line."""
    spec = load_spec(name)
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed and (asked.workers > 1 or asked.dry_run):
        raise ConfigError("--workers and --dry-run are not for accelerate launch; possible: neither of them")
    if asked.storage is not None and spec.mode != "search":
        raise ConfigError(f"--storage means nothing in mode {spec.mode}; possible: mode: search")
    if asked.only is not None and spec.mode == "search":
        raise ConfigError("--only means nothing in mode search; possible: a smaller space")
    cells = chosen(asked.only, [cell for cell in planned(spec) if not cell.excluded])
    check(cells + _sampled(spec))
    if asked.dry_run:
        dry_run(spec, cells, asked, console or Terminal())
        return 0
    place, start = Place(asked.output), uuid.uuid4().hex
    first = int(os.environ.get("RANK", "0")) == 0
    share, *helper_shares = _shares(asked.max_cells, asked.workers)
    with Board(spec, place, cells, start, silent=not first, watch=asked.workers > 1) as board:
        with _helpers(spec, asked, helper_shares, cells, start, board):
            summary = _work(spec, place, replace(asked, max_cells=share, device=_device(asked, 0)), cells, start, board)
        board.look()
    if summary is None:
        return board.failed
    console = console or Terminal()
    print_summary(summary, spec, asked.output, console)
    if any(row["state"] == DONE for row in summary["cells"]):
        console.say(f"report   {report([asked.output])[0]}")
    return sum(row["state"] == FAILED for row in summary["cells"])


def _sampled(spec: Spec) -> list[SweepCell]:
    """A sample of a search's cells, so that a wrong knob is found before it starts."""
    return [cell_of(spec, draw(spec.space, 0, i)) for i in range(SAMPLED if spec.mode == "search" else 0)]


def _work(spec: Spec, place: Place, asked: Asked, cells: list[SweepCell], start: str, board: Board) -> dict | None:
    """Runs this process's part and concludes; returns None for helpers and for all processes but the first."""
    import torch

    from vtc.eval.sweep.work import Options, Worker

    if asked.workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_threads(asked.workers))
    options = Options(start, asked.device, asked.storage, asked.max_cells, wait=not asked.worker)
    worker = Worker(spec, place, options, board.finished)
    if not worker.processes.first:
        worker.follow()
        worker.processes.close()
        return None
    summary = _lead(worker, cells, asked)
    worker.close()
    return summary


def _lead(worker, cells: list[SweepCell], asked: Asked) -> dict | None:
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
    return conclude(Findings(spec, place, search), None if worker.cells_left == 0 else worker.cells)


@contextlib.contextmanager
def _helpers(
    spec: Spec, asked: Asked, shares: list, cells: list[SweepCell], start: str, board: Board
) -> Iterator[None]:
    """Runs helper processes while the block runs, one per share (the number of cells that each may run)."""
    context = multiprocessing.get_context("spawn")
    helpers = [
        replace(asked, max_cells=share, device=_device(asked, i)) for i, share in enumerate(shares, 1) if share != 0
    ]
    workers = [
        context.Process(target=_worker, args=(spec.text, spec.name, one, cells, start), daemon=True) for one in helpers
    ]
    with _divided(asked.workers):
        for worker in workers:
            worker.start()
    try:
        yield
        for worker in workers:
            worker.join()
            if worker.exitcode:
                board.say(f"a worker ended with exit code {worker.exitcode}")
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _shares(most: int | None, workers: int) -> list[int | None]:
    """The number of cells that each worker may run."""
    return [None if most is None else most // workers + (i < most % workers) for i in range(workers)]


def _device(asked: Asked, number: int) -> str | None:
    """The device of a worker: several GPUs are assigned in turn."""
    import torch

    several = asked.workers > 1 and asked.device in (None, "cuda") and torch.cuda.device_count() > 1
    return f"cuda:{number % torch.cuda.device_count()}" if several else asked.device


def _threads(workers: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // workers)


@contextlib.contextmanager
def _divided(workers: int) -> Iterator[None]:
    """Divides the cores among the workers, unless the user did; more threads than cores are very slow."""
    user_set = "OMP_NUM_THREADS" in os.environ
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(workers)))
    try:
        yield
    finally:
        if not user_set:
            del os.environ["OMP_NUM_THREADS"]


def _worker(text: str, name: str, asked: Asked, cells: list[SweepCell], start: str) -> None:
    """A helper process: prints nothing, and leaves interrupts and the conclusion to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from vtc.eval.sweep.study import Search
    from vtc.eval.sweep.work import Options, Worker

    spec, place = read_spec(text, name), Place(asked.output)
    worker = Worker(spec, place, Options(start, asked.device, asked.storage, asked.max_cells, wait=False))
    worker.cells(cells, wait=True if spec.mode == "search" else None)
    if spec.mode == "search":
        worker.search(Search(spec, place, asked.storage))
