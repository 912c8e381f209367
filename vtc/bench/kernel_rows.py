"""What the kernels' part of `make gpu-check` stores in results.json, its lines, and two results side by side."""

import hashlib
from pathlib import Path

from vtc.bench.kernels import TOLERANCE
from vtc.bench.results import Kind, check_comparable
from vtc.io.shapes import number, one_of, or_none, record, text, whole
from vtc.kernels import backend

DEFINITIONS = {
    "error": "largest difference from the reference, relative to the reference's largest number; of picks, how much "
    "less they are worth than the reference's",
    "equal": "the results are the reference's to the last bit",
    "passed": f"the error is at most {TOLERANCE:g}",
    "seconds": "of one call, median over the repeats; both forms take turns",
    "bytes": "peak beyond the inputs",
    "failed": "the error message of a kernel that could not be run; the next run tries it again",
}
_figures = record(
    {
        "dtype": text, "error": or_none(number(0)), **dict.fromkeys(("equal", "passed"), one_of(True, False)),
        **dict.fromkeys(("triton_seconds", "reference_seconds"), number(0)),
        **dict.fromkeys(("triton_bytes", "reference_bytes"), whole()),
    }
)  # fmt: skip


def _row(value: object, where: str) -> dict:
    row = record({"kernel": text, "shape": text}, {"failed": text})(value, where)
    return row if "failed" in row else _figures(row, where)


def _grid(row: dict) -> dict:
    return {"kernels": f"{row['kernel']} {row['shape']}"}


KERNELS = Kind(
    "vtc.bench.kernels/2", _row, ("kernel", "shape"), DEFINITIONS, _grid, ("code",), varies="the kernels' code"
)
"""The results of the kernels' part of `make gpu-check`."""


def code_digest() -> str:
    """The first 16 digits of the sha256 over the source of all kernels: what was measured with other code is not
    reused."""
    root = Path(backend.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


HEADS = (
    ("kernel", 14), ("shape", 42), ("error", -9), ("equal", -6), ("triton ms", -10), ("torch ms", -10), ("faster", -8),
    ("MB", -7),
)  # fmt: skip


def _aligned(cells: list[str]) -> str:
    widths = [width for _, width in HEADS]
    parts = [cell.ljust(n) if n > 0 else cell.rjust(-n) for cell, n in zip(cells, widths, strict=True)]
    return " ".join(parts)


def head() -> str:
    """The line above those of `line_of`."""
    return _aligned([name for name, _ in HEADS])


def line_of(row: dict) -> str:
    """A row as one line of text."""
    return _aligned(_cells(row)).rstrip() + _mark(row)


def compared(a: dict, b: dict):
    """A rich table of two results, by kernel and shape. Raises ConfigError when they differ in more than the kernels'
    code."""
    from rich.table import Table

    check_comparable(KERNELS, a, b)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for head in ("result", *(name for name, _ in HEADS)):
        table.add_column(head, justify="left" if head in ("result", "kernel", "shape") else "right", no_wrap=True)
    rows_of_b = {(row["kernel"], row["shape"]): row for row in b["rows"]}
    for row in a["rows"]:
        table.add_row("A", *_cells(row))
        table.add_row("B", *_cells(rows_of_b[row["kernel"], row["shape"]]))
    return table


def _cells(row: dict) -> list[str]:
    if "failed" in row:
        return [row["kernel"], row["shape"], "failed", *[""] * 5]
    triton, reference = 1000 * row["triton_seconds"], 1000 * row["reference_seconds"]
    error = "NaN" if row["error"] is None else f"{row['error']:.1e}"
    return [
        row["kernel"], row["shape"], error, "yes" if row["equal"] else "", f"{triton:.3f}", f"{reference:.3f}",
        f"{reference / triton:.1f}x", f"{row['triton_bytes'] / 1e6:.1f}",
    ]  # fmt: skip


def _mark(row: dict) -> str:
    if "failed" in row:
        return f"  {row['failed'][:120]}"
    return "" if row["passed"] else "  BEYOND ITS TOLERANCE"
