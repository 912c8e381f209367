"""Text from data stays text: on a terminal, in HTML, in Markdown, in a CSV file, in pictures, in errors."""

import csv
import io
from dataclasses import is_dataclass
from html.parser import HTMLParser
from xml.etree.ElementTree import Element

import pytest
from jinja2 import UndefinedError
from PIL import Image

from tests.helpers import refused
from tests.helpers_mutated_files import NASTY
from tests.test_mutated_files import RECORD
from vtc.cli import main
from vtc.core.errors import VtcError
from vtc.eval.inspect.page import page
from vtc.eval.report import blocks
from vtc.eval.report.blocks import (
    Card,
    Cards,
    Cell,
    Code,
    Column,
    Figure,
    Figures,
    Fold,
    Heading,
    Items,
    Legend,
    Part,
    Rule,
    Table,
    Text,
)
from vtc.eval.report.markdown import text as markdown_page
from vtc.eval.report.page import text as report_page
from vtc.io.drawing import plain_text, save
from vtc.io.escape import cell, markdown, visible
from vtc.io.page import render
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


def test_markdown():
    """Nothing in it is markup."""
    assert markdown("<b>\n[a](b) | `c`") == r"&lt;b&gt; \[a\](b) \| \`c\`"
    code = "a\n  ```\n<script>"
    assert markdown_page([Code(code)]) == f"````yaml\n{code}\n````\n"


def test_pages():
    """What is given to a template is text; what is not given, and a block without a form, are errors."""
    page = render("vtc.io", "page.html.j2", title="</title><b a=\"1\" c='2'>&\x1b")
    assert "<title>&lt;/title&gt;&lt;b a=&#34;1&#34; c=&#39;2&#39;&gt;&amp;\\u001b</title>" in page
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("vtc.io", "page.html.j2")
    with pytest.raises(UndefinedError, match="form_on_the_page"):
        report_page([object()], "")


def every_block(text: str) -> list:
    """One of each class of block, all of whose texts are this one."""
    table = Table(text, [Column(text), Column(text)], [[Cell(text, text, 3, True, text)] * 2, Rule(text)], [text])
    svg = Element("svg", {"aria-label": text})
    svg.text = text
    figures = Figures([Figure(svg, text, text, text, table)])
    cards = Cards([Card(text, text, text, [text], 0)])
    inner = [Heading(2, text, text), Text(text, text), Items([text], [text], [text]), table, cards, figures]
    return [Part([*inner, Legend([text]), Code(text), Fold(text, [Text(text)])])]


def test_every_text_of_a_report_is_escaped_on_its_page():
    """Between tags and in attributes: with a text full of markup the page has the tags that it has with a plain one."""

    class Tags(HTMLParser):
        def __init__(self, text: str):
            super().__init__()
            self.found = []
            self.feed(text)

        def handle_starttag(self, tag, attributes):
            self.found.append((tag, [name for name, _ in attributes]))

    evil = f"\" '>{NASTY}</style><!--"
    used = {type(block).__name__ for block in every_block("x")[0].blocks} | {"Part", "Card", "Cell", "Column", "Rule"}
    assert used | {"Figure"} == {name for name, kind in vars(blocks).items() if is_dataclass(kind)}
    page = report_page(every_block(evil), evil)
    assert Tags(page).found == Tags(report_page(every_block("x"), "x")).found
    assert visible(page) == page


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
