"""The report as Markdown: the same blocks; a plot is replaced by its description."""

import re
from collections.abc import Sequence

from vtc.eval.report.blocks import Cards, Code, Figures, Fold, Heading, Items, Legend, Part, Rule, Table, Text
from vtc.io.escape import markdown, visible


def text(blocks: Sequence) -> str:
    """All blocks, separated by empty lines."""
    return "\n\n".join(filter(None, map(_block, blocks))) + "\n"


def _block(block: object) -> str:
    match block:
        case Heading():
            return "#" * block.level + " " + markdown(block.text)
        case Text():
            return markdown(block.text) if block.kind not in ("good", "bad") else f"**{markdown(block.text)}**"
        case Items():
            more = [*block.more, *[""] * len(block.items)]
            return "\n".join(f"- {markdown(item + text)}" for item, text in zip(block.items, more))
        case Table():
            return _table(block)
        case Cards():
            return "\n".join(
                f"- **{markdown(f'{c.title}: {c.name}')}**, {markdown(f'{c.figure}. ' + ' '.join(c.lines))}".strip()
                for c in block.cards
            )
        case Figures():
            return "\n\n".join(f"*{markdown(figure.alt)}*" for figure in block.figures)
        case Code():
            longest = max(map(len, re.findall("`+", block.text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}yaml\n{visible(block.text).rstrip()}\n{fence}"
        case Fold():
            return f"*{markdown(block.summary)}*\n\n" + text(block.blocks).rstrip()
        case Part():
            return text(block.blocks).rstrip()
        case Legend():
            return ""
    raise TypeError(type(block).__name__)


def _table(table: Table) -> str:
    lines = [f"**{markdown(table.caption)}**", ""]
    lines.append("| " + " | ".join(markdown(column.text) or " " for column in table.columns) + " |")
    lines.append("|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|")
    for row in table.rows:
        if isinstance(row, Rule):
            lines.append(f"| *{markdown(row.text)}* |" + " |" * (len(table.columns) - 1))
            continue
        cells = [markdown(cell.text) + (f" {cell.marks}" if cell.marks else "") for cell in row]
        lines.append("| " + " | ".join(f"**{t}**" if cell.strong else t for t, cell in zip(cells, row)) + " |")
    notes = [f"{markdown(note)}  " for note in table.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes]).rstrip()
