"""The results of `vtc bench selection` as JSON, a table and a plot."""

from pathlib import Path

from vtc.bench.selectors import SelectorRow
from vtc.io.drawing import plain_text, save
from vtc.io.files import write_json


def write(rows: list[SelectorRow], folder: Path, record: dict) -> Path:
    """results.json and selection.png in `folder`; rows so far, so that a stopped run leaves what it measured."""
    file = folder / "results.json"
    write_json(file, {**record, "rows": [row.to_dict() for row in rows]}, indent=1)
    with plain_text():
        _plot(rows, folder / "selection.png")
    return file


def table(rows: list[SelectorRow]):
    """A rich table: seconds in ms, ratios of the plain loop to ours."""
    from rich.table import Table

    out = Table(box=None, header_style="bold")
    for head in (
        "selector",
        "N",
        "k",
        "similar. ms",
        "loop ms",
        "total ms",
        "plain loop",
        "plain total",
        "picks",
        "random",
        "peak MB",
    ):
        out.add_column(head, justify="left" if head == "selector" else "right")
    for r in rows:
        ratios = ["too long"] * 2 if r.loop_ratio is None else [f"{r.loop_ratio:.1f} x", f"{r.total_ratio:.1f} x"]
        equal = {None: "", True: "equal", False: "DIFFER"}[r.equal]
        times = [f"{1000 * t:.3g}" for t in (r.similarities, r.loop, r.total)]
        random = f"1/{r.total / r.random:.0f}"
        out.add_row(r.selector, str(r.tokens), str(r.picks), *times, *ratios, equal, random, f"{r.memory / 1e6:.0f}")
    return out


def _plot(rows: list[SelectorRow], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row.selector for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 4), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        for picks in sorted({row.picks for row in rows}):
            mine = sorted((r for r in rows if r.selector == name and r.picks == picks), key=lambda r: r.tokens)
            (line,) = axis.loglog([r.tokens for r in mine], [1000 * r.total for r in mine], "o-", label=f"k = {picks}")
            known = [r for r in mine if r.plain_total is not None]
            axis.loglog(
                [r.tokens for r in known],
                [1000 * r.plain_total for r in known],
                "x--",
                color=line.get_color(),
                alpha=0.6,
            )
        axis.set_title(f"{name} ({next(r.method for r in rows if r.selector == name)})")
        axis.set_xlabel("visual tokens N")
        axis.grid(True, alpha=0.3)
    axes[0][0].set_ylabel("ms: similarities and loop (dashed: the plain loop)")
    axes[0][0].legend()
    figure.tight_layout()
    save(figure, file, dpi=110)
    plt.close(figure)
