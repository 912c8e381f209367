"""What is seen while a grid runs: a bar with rate and time left on a terminal, a line per run elsewhere."""

import time
from types import TracebackType

from rich.progress import ProgressColumn
from rich.text import Text

from vtc.io.terminal import Terminal, bar, say


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        return Text(f"{task.speed:.1f} samples/s" if task.speed else "- samples/s")


class Monitor:
    """Counts the samples of all runs together, on stderr; those of an earlier start are left out.

    silent: shows nothing, for processes beside the first.
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
        """A run starts; `done` of its samples are in the log already."""
        self._say()
        self.name, self.fresh, self.since = name, 0, time.perf_counter()
        self.total -= done
        self.bar.update(self.task, description=name, total=self.total)

    def advance(self, samples: int) -> None:
        """Some samples are in the log now."""
        self.fresh += samples
        self.bar.advance(self.task, samples)

    def _say(self) -> None:
        """The line on the run that ended."""
        if self.name and not self.silent and not self.console.is_terminal:
            seconds = time.perf_counter() - self.since
            rate = f"{self.fresh} samples in {seconds:.1f} s" if self.fresh else "complete in the log"
            say(f"vtc eval: {self.name}: {rate}", error=True)
