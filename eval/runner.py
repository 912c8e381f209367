"""The work: every run of the grid over every sample, batch by batch, into sample logs that a restart continues."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

import vtc
from vtc.errors import ConfigError
from vtc.eval import results
from vtc.eval.answers import Answerer
from vtc.eval.downsample import Downsample
from vtc.eval.models import Loaded, load
from vtc.eval.plan import Run, plan
from vtc.eval.plot import draw
from vtc.eval.progress import Monitor
from vtc.eval.samples import SampleLog
from vtc.eval.settings import Settings
from vtc.eval.tables import print_summary
from vtc.eval.tasks import TASKS, Task

DEMO_BATCH = 16  # the demo model answers batches exactly as it answers one by one, several times faster


@dataclass
class Job:
    """One run on one task: its docs in order, and its log."""

    run: Run
    task: Task
    docs: Sequence[dict]
    log: SampleLog

    def idents(self) -> list[str]:
        """Names of the docs."""
        return [self.task.ident(doc) for doc in self.docs]

    def todo(self, size: int) -> Iterator[list[dict]]:
        """Batches with a sample that is not done. Batches are cut from all docs, so a restart meets the same ones."""
        for start in range(0, len(self.docs), size):
            batch = [self.docs[i] for i in range(start, min(start + size, len(self.docs)))]
            if not all(self.log.done(self.task.ident(doc)) for doc in batch):
                yield batch

    def rows(self) -> list[dict]:
        """The log's rows of these docs."""
        return [self.log.rows[ident] for ident in self.idents() if ident in self.log.rows]


def evaluate(settings: Settings, console: Console | None = None) -> int:
    """Runs the grid, writes results to `settings.output`, prints the table; returns the number of failed samples.

    Everything that can be checked is checked before the model is loaded, and the rest before the first sample: raises
    ConfigError or UnsupportedError in one line.
    """
    tasks = [TASKS[name]() for name in settings.tasks]
    plan(settings)
    output = _writable(settings.output)
    docs = {task.name: task.docs(settings.split or task.splits[0], settings.limit) for task in tasks}
    loaded = load(settings.model, settings.model_args, settings.device)
    runs = plan(settings, None if loaded.family is None else loaded.family.name)
    _check_methods(loaded, runs)
    batch = settings.batch_size or (DEMO_BATCH if settings.model == "demo" else 1)
    with contextlib.ExitStack() as stack:
        jobs = []
        for run in runs:
            for task in tasks:
                path = output / "samples" / f"{run.name}.{task.name}.jsonl"
                log = SampleLog(path, _identity(settings, loaded, run, task, batch), settings.overwrite)
                stack.callback(log.close)
                jobs.append(Job(run, task, docs[task.name], log))
        with Monitor(sum(len(job.docs) for job in jobs)) as monitor:
            for job in jobs:
                notes = _work(job, loaded, settings, batch, monitor)
                results.write_run(output, loaded, job, notes)
    summary = results.write_summary(output, loaded, jobs)
    picture = draw(summary, output / "accuracy_vs_tokens.png")
    print_summary(summary, output, picture, console or Console())
    return sum(row["error"] is not None for job in jobs for row in job.rows())


def _writable(folder: Path) -> Path:
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {str(folder)!r} cannot be used: {error.strerror or error}") from None
    for place in (folder, folder / "samples"):
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"--output {str(place)!r} is not writable; possible: another folder")
    return folder


def _check_methods(loaded: Loaded, runs: list[Run]) -> None:
    """Each patch goes on and comes off once before anything is evaluated; a budget out of reach is found here."""
    for run in runs:
        if run.kind == "vtc":
            if loaded.unsupported is not None:
                raise loaded.unsupported
            try:
                with vtc.patched(loaded.model, run.config.dump(), processor=loaded.processor):
                    pass
            except ConfigError as error:
                raise ConfigError(f"{run.name}: {error}") from None
        elif run.kind == "downsample":
            Downsample(loaded, run.config.stages[0].budget)


def _identity(settings: Settings, loaded: Loaded, run: Run, task: Task, batch: int) -> dict:
    """Everything that an answer or its time may depend on. --limit is not in it: with a larger one the run goes on."""
    return {
        "vtc": vtc.__version__,
        "versions": {name: results.version(name) for name in ("torch", "transformers")},
        "model": loaded.identity,
        "method": run.record(),
        "task": {"name": task.name, "version": task.version, "split": settings.split or task.splits[0]},
        "seed": settings.seed,
        "generation": {"max_new_tokens": settings.max_new_tokens or task.max_new_tokens, "batch_size": batch},
    }


def _work(job: Job, loaded: Loaded, settings: Settings, batch: int, monitor: Monitor) -> list[str] | None:
    """Answers what the job's log does not have; returns the patch's notes on the model, None if nothing was missing."""
    done = sum(job.log.done(ident) for ident in job.idents())
    monitor.begin(f"{job.run.name}, {job.task.name}", done)
    if done == len(job.docs):
        return None
    torch.manual_seed(settings.seed)
    with Answerer(loaded, job.run, job.task, settings.max_new_tokens or job.task.max_new_tokens) as answer:
        for docs in job.todo(batch):
            fresh = [row for row in answer(docs) if not job.log.done(row["id"])]
            job.log.append(fresh)
            monitor.advance(len(fresh))
    return answer.notes
