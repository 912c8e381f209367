"""The results of `vtc bench selection` as a table and a plot, and two of them side by side."""

from collections.abc import Iterable
from pathlib import Path

from vtc.bench.results import check_comparable
from vtc.bench.selectors_run import SELECTION
from vtc.io.drawing import plain_text, save

HEADS = ("selector", "N", "k", "vtc ms", "other ms", "ratio", "picks", "random", "peak MB")


def plot(rows: list[dict], folder: Path) -> Path:
    """selection.png in `folder`: the total over the tokens, one panel a selector."""
    file = folder / "selection.png"
    with plain_text():
        _plot(rows, file)
    return file


def table(rows: list[dict]):
    """A rich table: milliseconds, the other form relative to vtc's, a random draw as a fraction of vtc's."""
    return _filled(HEADS, map(_line, rows))


def compared(a: dict, b: dict):
    """A rich table of two results, row by row. Raises ConfigError when they differ in more than their times."""
    check_comparable(SELECTION, a, b)
    rows_of_b = {tuple(row[part] for part in SELECTION.key): row for row in b["rows"]}
    lines = []
    for row in a["rows"]:
        lines += [["A", *_line(row)], ["B", *_line(rows_of_b[tuple(row[part] for part in SELECTION.key)])]]
    return _filled(("result", *HEADS), lines)


def _filled(heads: tuple[str, ...], lines: Iterable[list[str]]):
    from rich.table import Table

    out = Table(box=None, header_style="bold")
    for head in heads:
        out.add_column(head, justify="left" if head in ("result", "selector") else "right")
    for line in lines:
        out.add_row(*line)
    return out


def _line(row: dict) -> list[str]:
    return [
        row["selector"], str(row["tokens"]), str(row["picks"]), f"{1000 * row['vtc']:.3g}",
        *(["too long", ""] if row["other"] is None else [f"{1000 * row['other']:.3g}", f"{row['ratio']:.2f} x"]),
        {None: "", True: "equal", False: "DIFFER"}[row["equal"]], f"1/{row['vtc'] / row['random']:.0f}",
        f"{row['memory'] / 1e6:.0f}",
    ]  # fmt: skip


def _plot(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    methods = {row["selector"]: row["method"] for row in rows}
    figure, axes = plt.subplots(1, len(methods), figsize=(4.2 * len(methods), 4), squeeze=False, sharey=True)
    for axis, (name, method) in zip(axes[0], methods.items(), strict=True):
        for picks in sorted({row["picks"] for row in rows}):
            series = sorted(
                (row for row in rows if (row["selector"], row["picks"]) == (name, picks)), key=lambda row: row["tokens"]
            )
            (line,) = axis.loglog(*_points(series, "vtc"), "o-", label=f"k = {picks}")
            axis.loglog(*_points(series, "other"), "x--", color=line.get_color(), alpha=0.6)
        axis.set_title(f"{name} ({method})")
        axis.set_xlabel("visual tokens N")
        axis.grid(True, alpha=0.3)
    axes[0][0].set_ylabel("ms from features to picks (dashed: what it is compared with)")
    axes[0][0].legend()
    figure.tight_layout()
    save(figure, file, dpi=110)
    plt.close(figure)


def _points(rows: list[dict], part: str) -> tuple[list[int], list[float]]:
    measured = [row for row in rows if row[part] is not None]
    return [row["tokens"] for row in measured], [1000 * row[part] for row in measured]
