"""What `vtc check` prints: a table of what holds, and a line for each cell that is not simply ok."""

from vtc.check.outcome import Outcome

COLUMNS = 7  # of a table; more follow in another one
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
    """Why cells are not ok, failures first; the same reason of several columns, or of a whole column, is said once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for column in outcome.columns:
        cells = {name: row[column] for name, row in outcome.rows.items()}
        if len({(cell.state, cell.why) for cell in cells.values()}) == 1:
            cells = {"everything": next(iter(cells.values()))}
        for name, cell in cells.items():
            if cell.why:
                found.setdefault((cell.state, name, cell.why), []).append(column)
    lines = [f"{state}  {name}; {', '.join(columns)}: {why}" for (state, name, why), columns in found.items()]
    return sorted(lines, key=lambda line: not line.startswith("FAILED"))
