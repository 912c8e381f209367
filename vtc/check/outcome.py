"""The contract of a method on families, or of a family under methods, as a table of what holds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from vtc.check.contract import CONTRACT
from vtc.check.trial import Tiny, Trial
from vtc.check.verdicts import DoesNotApply, Violation
from vtc.core.errors import ConfigError, UnsupportedError, VtcError, one_line, reason, shown
from vtc.core.registry import located
from vtc.patches import FAMILIES
from vtc.patches._family import Family

USUAL = ("hiprune", "divprune", "mmtok", "visionzip", "fastv", "visiondrop")
"""The methods that a family is tried with: by attention, by features, with the question, merging; inside, and both."""


@dataclass(frozen=True)
class Verdict:
    """state: "ok", "-" (does not apply, or refused by name) or "FAILED"; why: in one line, empty for "ok"."""

    state: str
    why: str = ""


@dataclass
class ContractTable:
    """name: of the method or family; kind: "method" or "family"; rows: per property, a verdict for each column."""

    name: str
    kind: str
    columns: list[str]
    rows: dict[str, dict[str, Verdict]] = field(default_factory=lambda: {name: {} for name in CONTRACT})

    def verdicts(self) -> list[Verdict]:
        """All verdicts."""
        return [verdict for row in self.rows.values() for verdict in row.values()]

    @property
    def holds(self) -> bool:
        """Whether nothing failed."""
        return all(verdict.state != "FAILED" for verdict in self.verdicts())

    def to_dict(self) -> dict:
        """As plain data."""
        rows = {
            name: {column: {"state": verdict.state, "why": verdict.why} for column, verdict in row.items()}
            for name, row in self.rows.items()
        }
        return {
            "schema": "vtc.check/1", "name": self.name, "kind": self.kind, "holds": self.holds,
            "columns": self.columns, "properties": rows,
        }  # fmt: skip


def of_method(name: str, families: list[str], given: dict, announce: Callable[[str], None]) -> ContractTable:
    """A strategy on each family. announce: is called with what comes next, before each property. Raises ConfigError
    where every family refuses it."""
    return _filled(ContractTable(name, "method", families), [(name, family) for family in families], given, announce)


def of_family(name: str, methods: list[str], given: dict, announce: Callable[[str], None]) -> ContractTable:
    """A family under each strategy; see `of_method`."""
    return _filled(ContractTable(name, "family", methods), [(method, name) for method in methods], given, announce)


def family_at(place: str) -> str | None:
    """The name of the family at MODULE:CLASS, registered under it; None where a class of another kind stands. Raises
    ConfigError."""
    family = located(place, f"{shown(place)}")
    if not (isinstance(family, type) and issubclass(family, Family)):
        return None
    FAMILIES.register(family.name)(family)
    return family.name


def _filled(
    table: ContractTable, pairs: list[tuple[str, str]], given: dict, announce: Callable[[str], None]
) -> ContractTable:
    tinies: dict[str, Tiny] = {}
    for column, (strategy, family) in zip(table.columns, pairs):
        announce(column)
        trial = _tried(partial(_trial, strategy, family, tinies, given))
        for name, check in CONTRACT.items():
            announce(f"{column}: {name}")
            verdict = trial if isinstance(trial, Verdict) else _tried(partial(check, trial))
            table.rows[name][column] = verdict if isinstance(verdict, Verdict) else Verdict("ok")
    if all(verdict.state == "-" for verdict in table.verdicts()):
        first = table.verdicts()[0]
        raise ConfigError(f"nothing of {table.name!r} could be checked: {reason(first.why)}")
    return table


def _trial(strategy: str, family: str, tinies: dict[str, Tiny], given: dict) -> Trial:
    if family not in tinies:
        tinies[family] = Tiny(family)
    trial = Trial(strategy, tinies[family], given)
    with trial.on():
        return trial


def _tried(call: Callable[[], object]) -> object:
    """What the call returns, or the verdict that its error means. Refusals by name are no failures; any other exception
    from a method is."""
    try:
        with torch.random.fork_rng([]):
            return call()
    except DoesNotApply as none:
        return Verdict("-", one_line(none))
    except (ConfigError, UnsupportedError) as refused:
        return Verdict("-", f"refused: {reason(refused)}")
    except Violation as violation:
        return Verdict("FAILED", one_line(violation))
    except VtcError as error:
        return Verdict("FAILED", reason(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, too: it would end the check as if it had passed
        return Verdict("FAILED", one_line(f"{type(error).__name__}: {reason(error)}"))
