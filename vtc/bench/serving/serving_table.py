"""What `vtc bench serving` shows: a table of all cells, two results side by side, remarks."""

from vtc.bench.results import check_comparable
from vtc.bench.serving.ratios import SERVING, STOCK, summary

BUSY = 1.5  # load per core above which other work is suspected; an engine alone makes 1


HEADS = (
    "at once", "system", "rounds", "tokens", "KV blocks", "req/s", "(least, most)", "first s", "whole s",
    "blocks/unpr.", "req/s/unpr.", "(least, most)", "cpu/unpr.", "first/unpr.", "whole/unpr.",
)  # fmt: skip


def table(cells: list[dict]):
    """A rich table, a line for each concurrency and system."""
    return _filled(HEADS, [_line(row) for row in summary(cells)])


def compared(a: dict, b: dict):
    """A rich table of two results, by concurrency. Raises ConfigError when they differ in more than strategy and
    keep."""
    check_comparable(SERVING, a, b)
    rows = [(row, which) for which, data in zip("AB", (a, b), strict=True) for row in summary(data["rows"])]
    rows.sort(key=lambda pair: pair[0]["concurrency"])
    return _filled(("result", *HEADS), [[which, *_line(row)] for row, which in rows])


def _filled(heads: tuple[str, ...], rows: list[list[str]]):
    from rich.table import Table

    out = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for head in heads:
        out.add_column(head, justify="left" if head in ("result", "system") else "right", no_wrap=True)
    for row in rows:
        out.add_row(*row)
    return out


def _line(row: dict) -> list[str]:
    ratios = row.get("ratios", {})
    return [
        str(row["concurrency"]), row["system"], str(row["rounds"]), str(row["prompt_tokens"]),
        f"{row['blocks']['median']:g}", f"{row['rate']['median']:.3f}", _range(row["rate"]),
        *[f"{row[part]['median']:.2f}" for part in ("first", "whole")],
        _middle(ratios.get("blocks")), _middle(ratios.get("rate")), _range(ratios.get("rate")),
        *[_middle(ratios.get(part)) for part in ("cpu", "first", "whole")],
    ]  # fmt: skip


def lines(cells: list[dict], cores: int) -> list[str]:
    """Remarks on the table: whether pruning ever costs speed, how long choosing takes, which requests lost their
    blocks, and whether other work ran on the machine's `cores`."""
    messages = []
    rows = summary(cells)
    for system in dict.fromkeys(r["system"] for r in rows if r["system"] != STOCK):
        measured = [r for r in rows if r["system"] == system and r["ratios"]["rate"]]
        if not measured:
            continue
        slow = [str(r["concurrency"]) for r in measured if r["ratios"]["rate"]["median"] < 1]
        least_ratio = min(r["ratios"]["rate"]["min"] for r in measured)
        end = f"slower than unpruned at {', '.join(slow)} at once" if slow else "never slower than unpruned"
        messages.append(f"{system}: {end} (by the medians; least ratio of any round {least_ratio:.2f})")
        for share in [r["choosing"] for r in measured if r["choosing"]]:
            part = f"{share['median']:.1%}" if share["median"] > 0 else "less than what scatters"
            messages.append(f"{system}: choosing takes {part} of the time of requests one at a time")
    lost = [f"{c['system']} at {c['concurrency']}" for c in cells if c["preempted"]]
    if lost:
        messages.append(f"requests lost their KV blocks: {', '.join(dict.fromkeys(lost))}; their times are no measure")
    load = max((c["load"] for c in cells), default=0)
    if load > BUSY * cores:
        messages.append(
            f"noisy: up to {load:.1f} processes wanted to run on {cores} cores; other work on this machine?"
        )
    return messages


def _middle(figures: dict | None) -> str:
    return f"{figures['median']:.3f}" if figures else ""


def _range(figures: dict | None) -> str:
    return f"({figures['min']:.3f}, {figures['max']:.3f})" if figures else ""
