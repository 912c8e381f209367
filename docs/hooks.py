"""What `make docs` adds to mkdocs: pages from outside docs/, links that work in both places, nothing from a network."""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent

# Files of the repository that are shown in the site, and what they are called there.
SHOWN = {
    "README.md": "index.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "examples/own_method/README.md": "own_method.md",
    "vtc/demo/model/README.md": "demo_model.md",
    "vtc/demo/video/model/README.md": "demo_video_model.md",
    "LICENSE": "LICENSE.txt",
    "NOTICE": "NOTICE.txt",
    "CITATION.cff": "CITATION.txt",
}
LINK = re.compile(r"\]\(([^)#:\s]+)")
FOREIGN = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files, config):
    """The files of `SHOWN` join those of docs/."""
    for path, name in SHOWN.items():
        files.append(File.generated(config, name, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, **_):
    """Links are written for readers of the repository; here they lead to where the site has the file."""
    origin = {name: path for path, name in SHOWN.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(match: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1]))
        return "](" + SHOWN.get(path, path.removeprefix("docs/"))

    return LINK.sub(moved, markdown)


def on_post_page(output, page, **_):
    """Raises PluginError for a page that would load something from a network."""
    foreign = FOREIGN.search(output)
    if foreign:
        raise PluginError(f"{page.file.src_uri} loads {foreign[0]!r}; possible: files of the site")
    return output
