"""Text from data stays text: on a terminal, in HTML, in Markdown, in a CSV file, in pictures, in errors."""

import csv
import io

import pytest
from PIL import Image

from tests.helpers import refused
from tests.helpers_mutated_files import NASTY
from tests.test_mutated_files import RECORD
from vtc.cli import main
from vtc.core.errors import VtcError
from vtc.eval.inspect.page import page
from vtc.eval.report.blocks import Code
from vtc.eval.report.markdown import text as markdown_page
from vtc.io.drawing import plain_text, save
from vtc.io.escape import cell, html, markdown, visible
from vtc.io.terminal import Terminal, bar, say


def test_visible():
    """What steers a terminal, turns text around or cannot be written is shown as JSON writes it; the rest stays."""
    kept = "a\tb\nc é 色 [b] 🙂 <i>"
    assert visible(kept) == kept
    assert visible("\x1b[2J\x9b\r\x00\u202e\ud800\u2028") == r"\u001b[2J\u009b\u000d\u0000\u202e\ud800\u2028"


@pytest.mark.parametrize("text", ["a[/b]", "[red]x[/red]", ":smile:", NASTY, "x" * 300])
@pytest.mark.parametrize("color", [False, True])
def test_terminal(text, color):
    """A line, a table and its title show what is there, on a terminal too: no markup, no escape that is not rich's."""
    from rich.table import Table

    console = Terminal(file=io.StringIO(), width=2000, force_terminal=color, color_system=None)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    for show in (console.say, console.print, lambda _: console.print(table)):
        show(text)
    assert console.file.getvalue().count(visible(text)) == 5
    assert "\x1b" not in console.file.getvalue()


def test_bar(monkeypatch):
    """The text of a progress bar is no markup either."""
    console = Terminal(file=io.StringIO(), width=300, force_terminal=True, color_system=None)
    with bar(console) as progress:
        progress.add_task(f"a[/b]{NASTY}", total=2)
        progress.refresh()
    assert f"a[/b]{visible(NASTY)}" in console.file.getvalue()


def test_lines(monkeypatch):
    """Also for a stream that has not got the signs."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    say("é [/b] \x1b")
    assert stream.buffer.getvalue() == b"\\xe9 [/b] \\u001b\n"


def test_cells():
    """Text that a spreadsheet would take for a formula is defused; numbers stay numbers."""
    values = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "a=1", "", -0.5, 3, None, "é\x1b"]
    stream = io.StringIO()
    csv.writer(stream).writerow(map(cell, values))
    (row,) = csv.reader(io.StringIO(stream.getvalue()))
    shown = ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "'\\u000dx", "a=1", "", "-0.5", "3", "", "é\\u001b"]
    assert row == shown


def test_html_and_markdown():
    """Nothing in them is markup."""
    assert html("<b a=\"1\" c='2'>&\x1b") == "&lt;b a=&quot;1&quot; c=&#x27;2&#x27;&gt;&amp;\\u001b"
    assert markdown("<b>\n[a](b) | `c`") == r"&lt;b&gt; \[a\](b) \| \`c\`"
    code = "a\n  ```\n<script>"
    assert markdown_page([Code(code)]) == f"````yaml\n{code}\n````\n"


def test_every_text_of_a_selection_is_escaped_on_its_page():
    """Whatever a saved selection says, the page holds no tag of it; numbers too, should they be none."""

    def nasty(data: object) -> object:
        if isinstance(data, dict):
            return {key: nasty(value) for key, value in data.items()}
        if isinstance(data, list):
            return [nasty(value) for value in data]
        return NASTY if isinstance(data, str) else data

    record = nasty(RECORD)
    for run in record["runs"]:
        for step in run["steps"]:
            step["before"] = step["after"] = NASTY
    found = page(record, Image.new("RGB", (8, 8)))
    assert found.count("&lt;script&gt;") > 20
    assert "<script" not in found
    assert visible(found) == found


def test_pictures(tmp_path, recwarn):
    """Dollar signs are no mathematics, signs without a glyph no warning."""
    from matplotlib.figure import Figure

    with plain_text():
        figure = Figure()
        figure.text(0.5, 0.5, r"$\frac{ 色 \x1b")
        save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 500
    assert not recwarn.list


def test_long_errors_are_cut_in_the_middle():
    """The beginning says what is wrong, the end what is possible."""
    line = refused(lambda: _raise(f"file {'x' * 9000} is wrong; possible: another"), "file xx", "; possible: another")
    assert len(line) <= 500


def _raise(text: str) -> None:
    raise VtcError(text)


def test_the_system_errors_of_a_command_are_one_line(tmp_path, monkeypatch, capsys):
    """Exit code 2, whatever the machine refuses."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vtc.eval.showing.listing.list_tasks", full)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "tasks"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "vtc: error: [Errno 28] No space left on device\n"


def test_paths_are_never_markup(tmp_path, monkeypatch, capsys):
    """A finished evaluation prints its folder as it is called."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--model", "demo", "--strategy", "none", "--limit", "2", "--output", "out[/b][red]"])
    assert stopped.value.code in (None, 0)
    shown = capsys.readouterr().out
    assert "results  out[/b][red]\n" in shown
    assert (tmp_path / "out[" / "b][red]" / "results.json").is_file()
