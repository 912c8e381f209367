"""What `vtc check` prints: a table of what holds, and a line for each verdict that is not simply ok."""

from vtc.check.outcome import ContractTable

COLUMNS = 7  # of a table; more follow in another one
SHOWN = 2  # names of properties in a line
STYLES = {"ok": "green", "FAILED": "bold red", "-": "dim"}


def tables(outcome: ContractTable) -> list:
    """Rich tables, properties by columns."""
    from rich.table import Table
    from rich.text import Text

    result = []
    for start in range(0, len(outcome.columns), COLUMNS):
        columns = outcome.columns[start : start + COLUMNS]
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
        for head in (outcome.name, *columns):
            table.add_column(head, no_wrap=True, overflow="fold")
        for name, row in outcome.rows.items():
            table.add_row(name, *(Text(row[column].state, STYLES[row[column].state]) for column in columns))
        result.append(table)
    return result


def notes(outcome: ContractTable) -> list[str]:
    """Why verdicts are not ok, failures first: a line for each property, with what was seen first where columns differ;
    properties with the same line are joined."""
    lines: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for name, row in outcome.rows.items():
        for state in ("FAILED", "-"):
            whys = {column: verdict.why for column, verdict in row.items() if verdict.state == state}
            if state == "FAILED" and len(set(whys.values())) > 1:
                first = next(iter(whys))
                whys = dict.fromkeys(whys, f"on {first}, {whys[first]}")
            for why in dict.fromkeys(whys.values()):
                columns = tuple(column for column in whys if whys[column] == why)
                lines.setdefault((state, columns, why), []).append(name)
    texts = []
    for (state, columns, why), names in lines.items():
        which = "; ".join(names) if len(names) <= SHOWN else f"{len(names)} of {len(outcome.rows)} properties"
        texts.append(f"{state}  {which} ({', '.join(columns)}): {why}")
    return sorted(texts, key=lambda line: not line.startswith("FAILED"))
