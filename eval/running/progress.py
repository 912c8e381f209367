"""Progress of a grid: a bar with rate and remaining time on a terminal, otherwise a line per run."""

import time
from types import TracebackType

from rich.progress import ProgressColumn
from rich.text import Text

from vtc.io.terminal import Terminal, bar, say


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.speed:.1f} samples/s" if task.speed else "- samples/s")


class Monitor:
    """Counts the samples of all runs on stderr, except those answered by an earlier start.

    silent: prints nothing, for all processes but the first.
    """

    def __init__(self, total: int, silent: bool = False):
        self.console, self.silent = Terminal(stderr=True), silent
        self.total, self.name, self.fresh = total, "", 0
        self.bar = bar(self.console, _Rate(), hidden=silent or not self.console.is_terminal)

    def __enter__(self) -> "Monitor":
        self.bar.start()
        self.task = self.bar.add_task("", total=self.total)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._say()
        self.bar.stop()

    def begin(self, name: str, done: int) -> None:
        """Starts a run, `done` of whose samples are already in the log."""
        self._say()
        self.name, self.fresh, self.since = name, 0, time.perf_counter()
        self.total -= done
        self.bar.update(self.task, description=name, total=self.total)

    def advance(self, samples: int) -> None:
        """Counts samples that have been logged."""
        self.fresh += samples
        self.bar.advance(self.task, samples)

    def _say(self) -> None:
        """Prints the line of the run that ended."""
        if self.name and not self.silent and not self.console.is_terminal:
            seconds = time.perf_counter() - self.since
            rate = f"{self.fresh} samples in {seconds:.1f} s" if self.fresh else "complete in the log"
            say(f"vtc eval: {self.name}: {rate}", error=True)
