"""The report as one HTML page that needs nothing else: style, script and pictures are in it."""

from collections.abc import Sequence
from importlib.resources import files

from vtc.eval.report.blocks import (
    Cards,
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
)  # fmt: skip
from vtc.eval.report.tables import DEGREES
from vtc.eval.showing.chart import COLORS
from vtc.io.escape import html as escape

# The same hues, light enough for a dark page; black becomes white.
DARK = ("#56AEE8", "#FF8A4C", "#2CCB9B", "#E39AC6", "#F0B23E", "#8CCBF5", "#F2F2F2", "#D09B66", "#A8A8A8")
SHAPES = {  # as matplotlib's markers of these letters, in a square of 14
    "o": '<circle cx="7" cy="7" r="4.6"/>', "s": '<path d="M2.6 2.6h8.8v8.8H2.6z"/>',
    "D": '<path d="M7 1.2 12.8 7 7 12.8 1.2 7z"/>', "^": '<path d="M7 1.8 12.6 12H1.4z"/>',
    "v": '<path d="M7 12.2 12.6 2H1.4z"/>', "<": '<path d="M1.8 7 12 1.4v11.2z"/>',
    ">": '<path d="M12.2 7 2 1.4v11.2z"/>',
    "P": '<path d="M5 1.6h4V5h3.4v4H9v3.4H5V9H1.6V5H5z"/>',
    "X": '<path d="M4.2 1.6 7 4.4l2.8-2.8 2.6 2.6L9.6 7l2.8 2.8-2.6 2.6L7 9.6l-2.8 2.8-2.6-2.6L4.4 7 1.6 4.2z"/>',
    "*": '<path d="m7 1 1.5 4.1h4.3L9.4 7.8l1.2 4.3L7 9.6l-3.6 2.5 1.2-4.3L1.2 5.1h4.3z"/>',
}  # fmt: skip
# From no tint to the strongest, on a light and on a dark page.
HEAT = ((0xFF, 0xFF, 0xFF), (0xF2, 0xA1, 0x4A)), ((0x14, 0x18, 0x1C), (0x8A, 0x43, 0x10))


def text(blocks: Sequence, title: str) -> str:
    """The page."""
    folder = files("vtc.eval.report")
    style = (folder / "page.css").read_text(encoding="utf-8").replace("/*colours*/", _colours())
    script = (folder / "page.js").read_text(encoding="utf-8")
    body = "\n".join(map(_block, blocks))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _colours() -> str:
    """Variables of the series and of the tints, for a light and a dark page."""
    light = "".join(f"--c{i}:{colour};" for i, colour in enumerate(COLORS)) + _tints(*HEAT[0])
    dark = "".join(f"--c{i}:{colour};" for i, colour in enumerate(DARK)) + _tints(*HEAT[1])
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n" + "".join(
        f".h{i}{{background:var(--h{i})}}" for i in range(1, DEGREES + 1)
    )


def _tints(none: tuple, most: tuple) -> str:
    found = ""
    for i in range(1, DEGREES + 1):
        mixed = [round(a + (b - a) * i / DEGREES) for a, b in zip(none, most)]
        found += f"--h{i}:#{mixed[0]:02x}{mixed[1]:02x}{mixed[2]:02x};"
    return found


def _block(block: object) -> str:
    match block:
        case Heading():
            anchor = f' id="{escape(block.anchor)}"' if block.anchor else ""
            return f"<h{block.level}{anchor}>{escape(block.text)}</h{block.level}>"
        case Text():
            return f'<p class="{block.kind}">{escape(block.text)}</p>'
        case Items():
            empty = [""] * len(block.items)
            return f"<ul>{''.join(map(_item, block.items, [*block.links, *empty], [*block.more, *empty]))}</ul>"
        case Table():
            return _table(block)
        case Cards():
            return f'<div class="cards">{"".join(map(_card, block.cards))}</div>'
        case Figures():
            return f'<div class="figures">{"".join(map(_figure, block.figures))}</div>'
        case Legend():
            return _legend(block)
        case Code():
            return f'<pre tabindex="0">{escape(block.text)}</pre>'
        case Fold():
            inner = "\n".join(map(_block, block.blocks))
            return f"<details><summary>{escape(block.summary)}</summary>\n{inner}\n</details>"
        case Part():
            inner = "\n".join(map(_block, block.blocks))
            return f"<section>\n{inner}\n</section>"
    raise TypeError(type(block).__name__)


def _item(said: str, link: str, more: str) -> str:
    inner = f'<a href="#{escape(link)}">{escape(said)}</a>' if link else escape(said)
    return f"<li>{inner}{escape(more)}</li>"


def _card(card) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in card.lines)
    sign = "" if card.series is None else _sign(card.series)
    return (
        f'<article class="card"><p class="what">{escape(card.title)}</p><p class="name">{sign}{escape(card.name)}</p>'
        f'<p class="figure">{escape(card.figure)}</p>{lines}</article>'
    )


def _sign(series: int) -> str:
    """The marker of a series as a small picture."""
    from vtc.eval.showing.chart import MARKERS

    shape = SHAPES[MARKERS[series % len(MARKERS)]]
    colour = f"var(--c{series % len(COLORS)})"
    return f'<svg class="sign" viewBox="0 0 14 14" aria-hidden="true" style="fill:{colour}">{shape}</svg>'


def _legend(legend: Legend) -> str:
    keys = "".join(
        f'<button type="button" class="key" data-series="{i}" aria-pressed="true">{_sign(i)}{escape(name)}</button>'
        for i, name in enumerate(legend.names)
    )
    return (
        f'<div class="legend" role="group" aria-label="Methods in the plots below: show or hide">{keys}'
        '<button type="button" class="all" data-all="1">all</button>'
        '<button type="button" class="all" data-all="">none</button></div>'
        '<p class="note">Click a method to hide or show it, rest on it to bring it out; rest on a point for numbers. '
        "Diamond and dashed line: the full model. Rings and grey steps: the Pareto front, than which no run is both "
        "cheaper and as good. Bars: 1 standard error. Hollow: costs as much as the full model.</p>"
    )


def _figure(figure: Figure) -> str:
    return (
        f"<figure><figcaption>{escape(figure.title)}</figcaption>{figure.svg}"
        f'<p class="alt">{escape(figure.says)}</p>'
        f"<details><summary>The numbers</summary>{_table(figure.table)}</details></figure>"
    )


def _table(table: Table) -> str:
    heads = "".join(map(_head, table.columns))
    rows = "\n".join(_row(row, table.columns) for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    mono = " mono" if table.mono else ""
    return (
        f'<p class="caption">{escape(table.caption)}</p>'
        f'<div class="scroll{mono}" tabindex="0" role="region" aria-label="{escape(table.caption)}"><table>'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _head(column: Column) -> str:
    return f'<th scope="col"{_number(column)}>{escape(column.text)}</th>'


def _number(column: Column) -> str:
    return ' class="n"' if column.number else ""


def _row(row: Sequence | Rule, columns: Sequence[Column]) -> str:
    if isinstance(row, Rule):
        inner = f"<span>{escape(row.text)}</span>"
        return f'<tr class="rule"><th colspan="{len(columns)}" scope="rowgroup">{inner}</th></tr>'
    cells = []
    for place, (cell, column) in enumerate(zip(row, columns)):
        names = " ".join(["n"] * column.number + [f"h{cell.heat}"] * bool(cell.heat) + ["strong"] * cell.strong)
        inner = escape(cell.text) + (f' <span class="marks">{escape(cell.marks)}</span>' if cell.marks else "")
        said = f' title="{escape(cell.said)}"' if cell.said else ""
        tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
        cells.append(f"<{tag}{scope}{f' class={chr(34)}{names}{chr(34)}' if names else ''}{said}>{inner}</{tag}>")
    return f"<tr>{''.join(cells)}</tr>"
