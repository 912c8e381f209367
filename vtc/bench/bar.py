"""The progress of `vtc bench` on stderr: a bar over the rounds on a terminal, a line per row elsewhere."""

import time
from types import TracebackType

from vtc.bench.rounds import SpeedCase
from vtc.io.terminal import Terminal, bar, say


class Bar:
    """Counts the rounds of all rows to be measured."""

    def __init__(self, cases: list[SpeedCase], rounds: int):
        self.cases, self.rounds, self.done = cases, rounds, 0
        console = Terminal(stderr=True)
        self.terminal = console.is_terminal
        self.bar = bar(console, hidden=not self.terminal)

    def __enter__(self) -> "Bar":
        self.bar.start()
        self.task = self.bar.add_task("", total=self.rounds * len(self.cases))
        self.start = time.perf_counter()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def begin(self, case: SpeedCase) -> None:
        """A row starts."""
        self.done += 1
        text = f"{case.strategy} {case.keep}, B {case.batch}, {case.visual} visual tokens"
        self.bar.update(self.task, description=text)
        if not self.terminal:
            seconds = time.perf_counter() - self.start
            say(f"vtc bench: {self.done}/{len(self.cases)} {text} ({seconds:.0f} s so far)", error=True)

    def advance(self) -> None:
        """A round is done."""
        self.bar.advance(self.task)
