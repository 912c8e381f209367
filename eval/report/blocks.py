"""What a report consists of, whatever it is written as: headings, texts, tables, cards, figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element


@dataclass(frozen=True)
class Cell:
    """A cell of a table. marks: signs behind the text, see `tables.MARKS`; heat: 0 to 10, how strongly it is tinted,
    None for not at all; strong: to stand out; said: what the marks mean, for pointers and screen readers."""

    text: str
    marks: str = ""
    heat: int | None = None
    strong: bool = False
    said: str = ""


@dataclass(frozen=True)
class Rule:
    """A line across a table that names the rows below it."""

    text: str


@dataclass(frozen=True)
class Column:
    """A column's head; number: aligned to the right."""

    text: str
    number: bool = True


@dataclass(frozen=True)
class Table:
    """columns; rows: lists of cells, or rules between them; notes: sentences below. caption: what it shows."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell] | Rule]
    notes: Sequence[str] = ()
    mono: bool = False


@dataclass(frozen=True)
class Heading:
    """level 1 to 3; anchor: its id on the page."""

    level: int
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph. kind: plain, note (small), lead (large), good, bad (both stand out)."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Items:
    """A list of sentences; links: anchors that they lead to; more: texts behind them. Both none, or as many."""

    items: Sequence[str]
    links: Sequence[str] = ()
    more: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """A decision at a glance: what for, the choice, its figure, and lines that say more."""

    title: str
    name: str
    figure: str
    lines: Sequence[str]
    series: int | None = None


@dataclass(frozen=True)
class Cards:
    """Cards beside each other."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Figure:
    """A picture. svg: its tree; says: the message in a line, if any; alt: all of it in words; table: the numbers."""

    svg: Element
    title: str
    says: str
    alt: str
    table: Table


@dataclass(frozen=True)
class Figures:
    """Figures beside each other."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Legend:
    """Buttons that show and hide series; names: in the order of their styles."""

    names: Sequence[str]


@dataclass(frozen=True)
class Code:
    """A text to copy."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that are opened on demand."""

    summary: str
    blocks: Sequence[object]


@dataclass(frozen=True)
class Part:
    """Blocks that belong together: a legend works on the figures of its part."""

    blocks: Sequence[object] = field(default_factory=list)
