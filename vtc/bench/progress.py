"""What is seen while `vtc bench` runs, on stderr: a bar over rounds on a terminal, a line per row elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vtc.bench.measure import Case


class Bar:
    """Counts the rounds of all rows that are to be measured."""

    def __init__(self, cases: list[Case], rounds: int):
        self.cases, self.rounds, self.done = cases, rounds, 0
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.terminal = console.is_terminal
        self.bar = Progress(*columns, console=console, transient=True, disable=not self.terminal)

    def __enter__(self) -> "Bar":
        self.bar.start()
        self.task = self.bar.add_task("", total=self.rounds * len(self.cases))
        self.since = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def begin(self, case: Case) -> None:
        """A row starts."""
        self.done += 1
        text = f"{case.strategy} {case.keep}, B {case.batch}, {case.visual} visual tokens"
        self.bar.update(self.task, description=text)
        if not self.terminal:
            seconds = time.perf_counter() - self.since
            print(
                f"vtc bench: {self.done}/{len(self.cases)} {text} ({seconds:.0f} s so far)", file=sys.stderr, flush=True
            )

    def advance(self) -> None:
        """A round is done."""
        self.bar.advance(self.task)
