"""`vtc report`: folders of results as an HTML page, as Markdown, and as CSV."""

from collections.abc import Sequence
from pathlib import Path

from vtc.core.errors import ConfigError
from vtc.eval.report import markdown, page, table_csv
from vtc.eval.report.document import document, title
from vtc.eval.report.read import read
from vtc.eval.report.section_grid import measure
from vtc.eval.report.sections import split
from vtc.io.files import write_text


def report(folders: Sequence[Path], output: Path | None = None) -> list[Path]:
    """Writes report.html, report.md and report.csv to `output` (default: the first folder); returns their paths.

    folders: outputs of `vtc eval` or `vtc sweep`. Only comparable runs share a section. The same folders give the same
    bytes. Raises ConfigError in one line if there are no results, or if `output` cannot be written.
    """
    sources = read(folders)
    grids = [measure(section) for section in split(entry for source in sources for entry in source.entries)]
    if not grids:
        raise ConfigError(f"no results in {str(folders[0])!r}: no run has finished a task; possible: wait for one")
    blocks = document(sources, grids)
    output = Path(folders[0] if output is None else output)
    texts = {
        "report.html": page.text(blocks, title(sources)),
        "report.md": markdown.text(blocks),
        "report.csv": table_csv.text(grids),
    }
    for name, text in texts.items():
        write_text(output / name, text)
    return [output / name for name in texts]
