"""What `vtc check` prints: a table of what holds, and a line for each cell that is not simply ok."""

from vtc.check.outcome import Outcome

COLUMNS = 7  # of a table; more follow in another one
SHOWN = 2  # names of properties in a line
STYLES = {"ok": "green", "FAILED": "bold red", "-": "dim"}


def tables(outcome: Outcome) -> list:
    """Rich tables, properties by columns."""
    from rich.table import Table
    from rich.text import Text

    found = []
    for start in range(0, len(outcome.columns), COLUMNS):
        some = outcome.columns[start : start + COLUMNS]
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
        for head in (outcome.name, *some):
            table.add_column(head, no_wrap=True, overflow="fold")
        for name, row in outcome.rows.items():
            table.add_row(name, *(Text(row[column].state, STYLES[row[column].state]) for column in some))
        found.append(table)
    return found


def notes(outcome: Outcome) -> list[str]:
    """Why cells are not ok, failures first; what is the same for several columns and properties is said once."""
    columns: dict[tuple[str, str, str], list[str]] = {}
    for name, row in outcome.rows.items():
        for column, cell in row.items():
            if cell.why:
                columns.setdefault((cell.state, cell.why, name), []).append(column)
    rows: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (state, why, name), where in columns.items():
        rows.setdefault((state, why, tuple(where)), []).append(name)
    lines = []
    for (state, why, where), names in rows.items():
        which = "; ".join(names) if len(names) <= SHOWN else f"{len(names)} of {len(outcome.rows)} properties"
        lines.append(f"{state}  {which} ({', '.join(where)}): {why}")
    return sorted(lines, key=lambda line: not line.startswith("FAILED"))
