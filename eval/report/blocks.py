"""The building blocks of a report in any format: headings, texts, tables, cards, figures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element


@dataclass(frozen=True)
class Cell:
    """A cell of a table. marks: signs after the text, see `tables.MARKS`; heat: strength of the tint from 0 to 10, None
    for no tint; strong: emphasised; said: what the marks mean, for tooltips and screen readers."""

    text: str
    marks: str = ""
    heat: int | None = None
    strong: bool = False
    said: str = ""


@dataclass(frozen=True)
class Rule:
    """A line across a table with a heading for the rows below it."""

    text: str


@dataclass(frozen=True)
class Column:
    """The head of a column; number: right-aligned."""

    text: str
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table. rows: lists of cells, with rules between them; notes: sentences below the table."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell] | Rule]
    notes: Sequence[str] = ()
    mono: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3. anchor: its id on the page."""

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
    """A list of sentences. links: anchors that they link to; more: texts after the links. Each empty, or as long."""

    items: Sequence[str]
    links: Sequence[str] = ()
    more: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """A recommendation at a glance: its purpose, the run's name, its figure, and lines with details."""

    title: str
    name: str
    figure: str
    lines: Sequence[str]
    series: int | None = None


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Figure:
    """A plot. svg: its XML; says: a one-line summary, if any; alt: a full description; table: the numbers."""

    svg: Element
    title: str
    says: str
    alt: str
    table: Table


@dataclass(frozen=True)
class Figures:
    """Figures side by side."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Legend:
    """Buttons that show and hide series. names: in the order of their styles."""

    names: Sequence[str]


@dataclass(frozen=True)
class Code:
    """A text to copy."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that are collapsed until opened."""

    summary: str
    blocks: Sequence[object]


@dataclass(frozen=True)
class Part:
    """Blocks that belong together: a legend controls the figures of its part."""

    blocks: Sequence[object] = field(default_factory=list)
