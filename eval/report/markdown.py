"""The report as Markdown: the same blocks without pictures; of a plot its message stays."""

from collections.abc import Sequence

from vtc.eval.report.blocks import Cards, Code, Figures, Fold, Heading, Items, Legend, Part, Rule, Table, Text


def text(blocks: Sequence) -> str:
    """All blocks, an empty line between them."""
    return "\n\n".join(filter(None, map(_block, blocks))) + "\n"


def escaped(value: str) -> str:
    """On one line, with nothing in it that Markdown or HTML would read as markup."""
    value = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + sign if sign in "\\`*_[]|#~$!" else sign for sign in value)


def _block(block: object) -> str:
    match block:
        case Heading():
            return "#" * block.level + " " + escaped(block.text)
        case Text():
            return escaped(block.text) if block.kind not in ("good", "bad") else f"**{escaped(block.text)}**"
        case Items():
            more = [*block.more, *[""] * len(block.items)]
            return "\n".join(f"- {escaped(item + text)}" for item, text in zip(block.items, more))
        case Table():
            return _table(block)
        case Cards():
            return "\n".join(
                f"- **{escaped(f'{c.title}: {c.name}')}**, {escaped(f'{c.figure}. ' + ' '.join(c.lines))}".strip()
                for c in block.cards
            )
        case Figures():
            return "\n\n".join(f"*{escaped(figure.alt)}*" for figure in block.figures)
        case Code():
            longest = max((len(line) - len(line.lstrip("`")) for line in block.text.splitlines()), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}yaml\n{block.text.rstrip()}\n{fence}"
        case Fold():
            return f"*{escaped(block.summary)}*\n\n" + text(block.blocks).rstrip()
        case Part():
            return text(block.blocks).rstrip()
        case Legend():
            return ""
    raise TypeError(type(block).__name__)


def _table(table: Table) -> str:
    lines = [f"**{escaped(table.caption)}**", ""]
    lines.append("| " + " | ".join(escaped(column.text) or " " for column in table.columns) + " |")
    lines.append("|" + "|".join("---:" if column.number else "---" for column in table.columns) + "|")
    for row in table.rows:
        if isinstance(row, Rule):
            lines.append(f"| *{escaped(row.text)}* |" + " |" * (len(table.columns) - 1))
            continue
        cells = [escaped(cell.text) + (f" {cell.marks}" if cell.marks else "") for cell in row]
        lines.append("| " + " | ".join(f"**{t}**" if cell.strong else t for t, cell in zip(cells, row)) + " |")
    return "\n".join([*lines, *([""] if table.notes else []), *(f"{escaped(note)}  " for note in table.notes)]).rstrip()
