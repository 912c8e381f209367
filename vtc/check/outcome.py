"""The contract of a method on families, or of a family under methods, as a table of what holds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from vtc.check.contract import CONTRACT
from vtc.check.errors import DoesNotApply, Violation
from vtc.check.subject import Subject, Tiny
from vtc.core.errors import ConfigError, UnsupportedError, VtcError, one_line, reason, shown
from vtc.core.registry import located
from vtc.patches import FAMILIES
from vtc.patches._family import Family

USUAL = ("hiprune", "divprune", "mmtok", "visionzip", "fastv", "visiondrop")
"""The methods that a family is tried with: by attention, by features, with the question, merging; inside, and both."""


@dataclass(frozen=True)
class Cell:
    """state: "ok", "-" (does not apply, or refused by name) or "FAILED"; why: in one line, empty for "ok"."""

    state: str
    why: str = ""


@dataclass
class Outcome:
    """name: of the method or family; kind: "method" or "family"; rows: per property, a cell for each column."""

    name: str
    kind: str
    columns: list[str]
    rows: dict[str, dict[str, Cell]] = field(default_factory=lambda: {name: {} for name in CONTRACT})

    def cells(self) -> list[Cell]:
        """All cells."""
        return [cell for row in self.rows.values() for cell in row.values()]

    @property
    def holds(self) -> bool:
        """Whether nothing failed."""
        return all(cell.state != "FAILED" for cell in self.cells())

    def to_dict(self) -> dict:
        """As plain data."""
        rows = {
            name: {column: {"state": cell.state, "why": cell.why} for column, cell in row.items()}
            for name, row in self.rows.items()
        }
        return {
            "schema": "vtc.check/1", "name": self.name, "kind": self.kind, "holds": self.holds,
            "columns": self.columns, "properties": rows,
        }  # fmt: skip


def of_method(name: str, families: list[str], given: dict, told: Callable[[str], None]) -> Outcome:
    """A strategy on each family. told: hears what comes next, before each property. Raises ConfigError where every
    family refuses it."""
    return _filled(Outcome(name, "method", families), [(name, family) for family in families], given, told)


def of_family(name: str, methods: list[str], given: dict, told: Callable[[str], None]) -> Outcome:
    """A family under each strategy; see `of_method`."""
    return _filled(Outcome(name, "family", methods), [(method, name) for method in methods], given, told)


def family_at(place: str) -> str | None:
    """The name of the family at MODULE:CLASS, registered under it; None where a class of another kind stands. Raises
    ConfigError."""
    found = located(place, f"{shown(place)}")
    if not (isinstance(found, type) and issubclass(found, Family)):
        return None
    FAMILIES.register(found.name)(found)
    return found.name


def _filled(outcome: Outcome, pairs: list[tuple[str, str]], given: dict, told: Callable[[str], None]) -> Outcome:
    tinies: dict[str, Tiny] = {}
    for column, (strategy, family) in zip(outcome.columns, pairs):
        told(column)
        subject = _tried(partial(_subject, strategy, family, tinies, given))
        for name, check in CONTRACT.items():
            told(f"{column}: {name}")
            cell = subject if isinstance(subject, Cell) else _tried(partial(check, subject))
            outcome.rows[name][column] = cell if isinstance(cell, Cell) else Cell("ok")
    if all(cell.state == "-" for cell in outcome.cells()):
        first = outcome.cells()[0]
        raise ConfigError(f"nothing of {outcome.name!r} could be checked: {reason(first.why)}")
    return outcome


def _subject(strategy: str, family: str, tinies: dict[str, Tiny], given: dict) -> Subject:
    if family not in tinies:
        tinies[family] = Tiny(family)
    subject = Subject(strategy, tinies[family], given)
    with subject.on():
        return subject


def _tried(call: Callable[[], object]) -> object:
    """What the call returns, or the cell that its error means. Refusals by name are no failures; whatever else comes
    out of somebody's method is."""
    try:
        with torch.random.fork_rng([]):
            return call()
    except DoesNotApply as none:
        return Cell("-", one_line(none))
    except (ConfigError, UnsupportedError) as refused:
        return Cell("-", f"refused: {reason(refused)}")
    except Violation as violation:
        return Cell("FAILED", one_line(violation))
    except VtcError as error:
        return Cell("FAILED", reason(error))
    except Exception as error:
        return Cell("FAILED", one_line(f"{type(error).__name__}: {reason(error)}"))
