"""Runs the grid: every run on every sample, batch by batch, into sample logs that a restart continues."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import vtc
from vtc.core.errors import ConfigError, VtcError, shown
from vtc.eval.clip_inputs import check_clips
from vtc.eval.data.docs import Docs
from vtc.eval.models import BUNDLED, Loaded, load
from vtc.eval.papers import against, load_card
from vtc.eval.results.runs import write_run, write_summary
from vtc.eval.results.samples import SampleLog
from vtc.eval.results.versions import version
from vtc.eval.running.answers import Answerer
from vtc.eval.running.downsample import Downsample
from vtc.eval.running.eval_settings import EvalSettings
from vtc.eval.running.launch import Processes
from vtc.eval.running.plan import DOWNSAMPLE, Run, plan
from vtc.eval.running.progress import Monitor
from vtc.eval.showing.chart import draw
from vtc.eval.showing.console import print_summary
from vtc.eval.tasks import TASKS, Task
from vtc.io.terminal import Terminal
from vtc.kernels import backend

DEMO_BATCH = 16  # the demo model gives the same answers in batches, several times faster


class Work:
    """A task's docs, and the indices of those assigned to this process: whole groups, distributed in turn.

    Raises ConfigError if two docs have the same name.
    """

    def __init__(self, task: Task, docs: Docs, rank: int = 0, world: int = 1):
        self.task, self.docs = task, docs
        self.idents, self.indices, groups = [], [], {}
        for i in range(len(docs)):
            names = task.names(docs.text(i))
            self.idents.append(names["id"])
            if groups.setdefault(names["group"], len(groups)) % world == rank:
                self.indices.append(i)
        if len(set(self.idents)) < len(self.idents):
            twice = shown(Counter(self.idents).most_common(1)[0][0])
            raise ConfigError(f"data of task {task.name!r}: the id {twice} occurs twice; possible: each id once")

    def batches(self, log: SampleLog, size: int) -> Iterator[list[int]]:
        """This process's batches with unanswered samples; batches are fixed, so that a restart has the same ones."""
        for start in range(0, len(self.indices), size):
            batch = self.indices[start : start + size]
            if not all(log.done(self.idents[i]) for i in batch):
                yield batch


@dataclass
class EvalJob:
    """One run on one task, with its docs and its log."""

    run: Run
    work: Work
    log: SampleLog

    @property
    def task(self) -> Task:
        """The benchmark."""
        return self.work.task

    @property
    def identity(self) -> dict:
        """Everything that the answers depend on."""
        return self.log.identity

    @property
    def key(self) -> str:
        """The hash of `identity`."""
        return self.log.key

    @property
    def times(self) -> dict[str, dict]:
        """By sample `seconds` and `batch`, where known."""
        return self.log.times()

    def rows(self) -> list[dict]:
        """The rows of the log for these docs."""
        return [self.log.rows[ident] for ident in self.work.idents if ident in self.log.rows]


def evaluate(
    settings: EvalSettings, console: Terminal | None = None, loaded: Loaded | None = None, quiet: bool = False,
    processes: Processes | None = None,
) -> int:  # fmt: skip
    """Runs the grid, writes results to `settings.output`, prints the tables; returns the number of failed samples.

    loaded: the model of `settings.model`, for callers that have it already; quiet: nothing is printed or plotted.
    processes: those that share the work, for callers that need them afterwards. Under `accelerate launch` each process
    answers its part, and the first one writes and prints. Whatever can be checked is checked before the model is
    loaded, and the rest before the first sample: raises ConfigError or UnsupportedError in one line.
    """
    tasks = [settings.task(TASKS[name]) for name in settings.tasks]
    _check_clip_options(settings, tasks)
    places = [settings.place(task.name) for task in tasks]
    plan(settings)
    cards = [load_card(name) for name in settings.against]
    output = _writable(settings.output)
    given, processes = processes, processes or Processes()
    docs = [task.open(settings.split, settings.limit, place) for task, place in zip(tasks, places)]
    for task, task_docs in zip(tasks, docs):
        task.check(task_docs)
    works = [Work(*one, processes.rank, processes.world) for one in zip(tasks, docs)]
    loaded = loaded or load(settings.model, settings.model_args, processes.device(settings.device))
    runs = plan(settings, None if loaded.family is None else loaded.family.name)
    _check_methods(loaded, runs)
    if any(task.takes_clips for task in tasks):
        check_clips(loaded)
    batch = settings.batch_size or (DEMO_BATCH if settings.model in BUNDLED else 1)
    failed = None
    with contextlib.ExitStack() as stack:
        if given is None:
            stack.callback(processes.close)
        jobs = []
        for run in runs:
            for work in works:
                identity = _identity(settings, loaded, run, work, batch)
                log = SampleLog(
                    output, f"{run.name}.{work.task.name}", identity, settings.overwrite, processes.rank,
                    processes.world,
                )  # fmt: skip
                stack.callback(log.close)
                jobs.append(EvalJob(run, work, log))
        with Monitor(sum(len(job.work.indices) for job in jobs), silent=quiet or not processes.first) as monitor:
            notes = [_answer(job, loaded, settings, batch, monitor, processes) for job in jobs]
        if not processes.first:
            for job in jobs:
                job.log.close()
        processes.meet()
        if processes.first:
            try:
                failed = _conclude(jobs, notes, loaded, output, cards, None if quiet else console or Terminal())
            except VtcError as error:
                failed = error  # shared below, so that no process waits forever
        failed = processes.share(failed)
        if isinstance(failed, VtcError):
            raise failed
        return failed


def _conclude(
    jobs: Sequence[EvalJob], notes: list, loaded: Loaded, output: Path, cards: list, console: Terminal | None
) -> int:
    """Writes the results from the logs of all processes and, with a console, the plot and the tables."""
    for job, job_notes in zip(jobs, notes):
        job.log.gather()
        missing = len(job.work.idents) - len(job.rows())
        if missing:
            raise ConfigError(
                f"{missing} samples of {job.log.name!r} are in no log of {str(output)!r}; possible: an --output that "
                "all machines share"
            )
        write_run(output, loaded.record, job, job_notes)
    summary = write_summary(output, loaded.record, jobs)
    if console is not None:
        print_summary(summary, output, draw(summary, output / "accuracy_vs_tokens.png"), console)
    for card in cards:
        against(card, summary, console, output)
    return sum(row["error"] is not None for job in jobs for row in job.rows())


def _writable(folder: Path) -> Path:
    places = (folder, folder / "samples", folder / "times")
    try:
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {str(folder)!r} cannot be used: {error.strerror or error}") from None
    for place in places:
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"--output {str(place)!r} is not writable; possible: another folder")
    return folder


def _check_clip_options(settings: EvalSettings, tasks: Sequence[Task]) -> None:
    """Raises ConfigError for options of clips without a task of clips, and for smaller pictures with one."""
    clips = [task.name for task in tasks if task.takes_clips]
    for option, value in (("frames", settings.frames), ("videos", settings.videos)):
        if value and not clips:
            possible = ", ".join(name for name in TASKS if TASKS[name].takes_clips)
            raise ConfigError(f"--{option} has no effect, as no task has videos; possible: --tasks of {possible}")
    if clips and DOWNSAMPLE in settings.strategies:
        raise ConfigError(f"downsample cannot shrink the clips of task {clips[0]!r}; possible: another strategy")


def _check_methods(loaded: Loaded, runs: list[Run]) -> None:
    """Applies and removes each patch once before anything is evaluated, which rejects unreachable budgets."""
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
            Downsample(loaded, run.config.allocate().projector)


def _identity(settings: EvalSettings, loaded: Loaded, run: Run, work: Work, batch: int) -> dict:
    """Everything that an answer may depend on. Not --limit or the number of processes: these may change later."""
    task = work.task
    return {
        "vtc": vtc.__version__,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "model": loaded.identity,
        "method": run.record(),
        "kernels": _kernels(),
        "task": {
            "name": task.name, "version": task.version, "dialect": task.dialect,
            "split": settings.split or task.splits[0], "data": work.docs.record,
        },
        "seed": settings.seed,
        "prompt": {"system": settings.system, "pad_square": settings.pad_square},
        "generation": {"max_new_tokens": settings.max_new_tokens or task.max_new_tokens, "batch_size": batch},
        **({"agreement": True} if settings.agreement else {}),
    }  # fmt: skip


def _kernels() -> str:
    """The implementation forced by VTC_KERNELS, or auto; raises ConfigError for an unknown one."""
    try:
        return backend.choice()
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _answer(
    job: EvalJob, loaded: Loaded, settings: EvalSettings, batch: int, monitor: Monitor, processes: Processes
) -> list[str] | None:
    """Answers the samples missing in the job's log; returns the patch's notes, None if none were missing."""
    done = sum(job.log.done(job.work.idents[i]) for i in job.work.indices)
    part = "" if processes.world == 1 else f", process 1 of {processes.world}"
    monitor.begin(f"{job.run.name}, {job.task.name}{part}", done)
    if done == len(job.work.indices):
        return None
    torch.manual_seed(settings.seed)
    most = settings.max_new_tokens or job.task.max_new_tokens
    encoding = {"system": settings.system, "pad_square": settings.pad_square}
    with Answerer(loaded, job.run, job.task, most, settings.agreement, **encoding) as answer:
        for members in job.work.batches(job.log, batch):
            fresh = [one for one in answer([job.work.docs[i] for i in members]) if not job.log.done(one[0]["id"])]
            for row, times in fresh:
                job.log.append(row, times)
            monitor.advance(len(fresh))
    return answer.notes
