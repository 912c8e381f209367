"""A matplotlib figure as inline SVG with the page's colours and font, classes for its series, and tooltips.

Artists are named by `gid`: `series-3` is shown and hidden with series 3; `point-3-17` too, and has tooltip 17.
"""

import io
import re
from collections.abc import Mapping
from xml.etree import ElementTree

from vtc.io.drawing import plain_text
from vtc.io.escape import visible

INK, GRID, MUTED = "#010203", "#010204", "#010205"  # replaced by the page's own colours
PAPER = "#010206"
_FIRST = 0x0A0000  # the colours of the series start here
_VARIABLES = {INK: "currentColor", GRID: "var(--grid)", MUTED: "var(--muted)", PAPER: "var(--paper)"}
_LINK = "{http://www.w3.org/1999/xlink}href"
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "vtc", "font.size": 10.5, "font.family": "DejaVu Sans",
    "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none", "axes.titlesize": 10.5,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "lines.solid_capstyle": "butt", "text.usetex": False, "axes.unicode_minus": True,
    "text.parse_math": False, "path.simplify": False, "figure.dpi": 72, "savefig.dpi": 72,
}  # fmt: skip


def colour(series: int) -> str:
    """The placeholder for a series' colour."""
    return f"#{_FIRST + series:06x}"


def inline(figure, prefix: str, tips: Mapping[int, str], alt: str) -> ElementTree.Element:
    """The figure as an `<svg role="img">` to embed in a page: ids begin with `prefix`, nothing external is loaded.

    tips: tooltips by number; alt: a description.
    """
    stream = io.StringIO()
    with plain_text():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(visible(stream.getvalue()))
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style", "title"):
                parent.remove(child)
    for element in root.iter():
        _plain(element, prefix)
    for group in root.iter("g"):
        named = re.fullmatch(rf"{prefix}(series|point)-(\d+)(?:-(\d+))?(?:-\w+)?", group.get("id", ""))
        if named:
            del group.attrib["id"]
            group.set("class", f"s s{named[2]}" + (" p" if named[1] == "point" else ""))
            if named[1] == "point":
                tip = ElementTree.Element("title")
                tip.text = visible(tips[int(named[3])])
                group.insert(0, tip)
    kept = {"viewBox": root.get("viewBox"), "role": "img", "aria-label": visible(alt), "stroke-linejoin": "round"}
    root.attrib.clear()
    root.attrib.update(kept)
    return root


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _plain(element: ElementTree.Element, prefix: str) -> None:
    """Removes namespaces, prefixes ids, and replaces colours by the page's."""
    element.tag = _local(element.tag)
    for name in list(element.attrib):
        value = element.attrib.pop(name)
        if name == "id":
            value = prefix + value
        elif name == _LINK:
            name, value = "href", "#" + prefix + value.removeprefix("#")
        elif name == "style":
            value = _colours(value)
            value = re.sub(r"font: (?:[a-z]+ )?(?:\d+ )?([\d.]+)px [^;]*", r"font-size: \1px", value)
            value = re.sub(r"font-family: [^;]*; ?", "", value)
        element.set(name, value.replace("url(#", f"url(#{prefix}"))
    if element.tail and not element.tail.strip():
        element.tail = "\n"
    if element.text and not element.text.strip():
        element.text = None


def _colours(style: str) -> str:
    for stand_in, variable in _VARIABLES.items():
        style = style.replace(stand_in, variable)
    return re.sub(r"#0a00([0-9a-f]{2})", lambda match: f"var(--c{int(match[1], 16)})", style)
