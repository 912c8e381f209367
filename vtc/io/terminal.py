"""Output on a terminal: every line, table and bar of vtc goes through here, so that data cannot control it."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
from rich.text import Text

from vtc.io.escape import visible


def say(text: object, error: bool = False) -> None:
    """Prints a line on stdout, or on stderr."""
    stream, line = sys.stderr if error else sys.stdout, visible(text)
    encoding = stream.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


class Terminal(Console):
    """rich's console for texts that are data: no markup, no emoji codes, no control characters."""

    def __init__(self, **options):
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options) -> Text:
        """A text with its style; every string that is printed, also in a table, passes through here."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

    def say(self, text: object, style: str = "") -> None:
        """Prints a line that is not broken, however long it is."""
        self.print(Text(visible(text), style), soft_wrap=True)

    def wide(self, width: int) -> "Terminal":
        """This console, or one of `width` columns where the output is no terminal."""
        return self if self.is_terminal else Terminal(file=self.file, width=width, force_terminal=False)


class _Description(ProgressColumn):
    def render(self, task) -> Text:
        return Text(visible(task.description))


def bar(console: Terminal, *more: ProgressColumn, hidden: bool = False) -> Progress:
    """A progress bar with the current work, the count, `more`, and the time left; it disappears when it ends."""
    columns = (_Description(), BarColumn(), MofNCompleteColumn(), *more, TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=hidden)
