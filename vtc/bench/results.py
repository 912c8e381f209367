"""results.json of the benchmarks: written row by row, resumed, and compared only with what is comparable.

One store for `vtc bench`, `vtc bench serving`, `vtc bench selection` and the kernels of `make gpu-check`. What differs
between them is a `Kind`: what a row holds, which of its fields identify it, and in what two results may differ.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

from vtc import __version__
from vtc.core.errors import ConfigError
from vtc.io.files import read_json, write_json
from vtc.io.shapes import Shape, anything, list_of, mapping_of, number, one_of, record

FILE = "results.json"
SPREAD = record({"median": number(), "min": number(), "max": number()})
"""The shape of a `spread`."""


@dataclass(frozen=True)
class Kind:
    """The results of one benchmark. schema: its name and version in the file; row: the shape of a row; key: the fields
    that identify a row; definitions: of the figures, by name; grid: what two results must both have measured to be
    compared, by name, from a row; free: the settings in which two results may differ; varies: what may differ between
    them, in words; derived: what the file holds beside the rows and can be computed from them."""

    schema: str
    row: Shape
    key: tuple[str, ...]
    definitions: Mapping[str, str]
    grid: Callable[[dict], dict]
    free: tuple[str, ...] = ()
    derived: Callable[[list[dict]], dict] = field(default=lambda rows: {})
    varies: str = "strategy and keep"


def environment(device: torch.device) -> dict:
    """Versions and machine, as far as they explain a time."""
    description = {
        "vtc": __version__, "python": platform.python_version(), "system": platform.system(),
        "processor": _processor(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }  # fmt: skip
    for name in ("torch", "transformers", "triton", "flash-attn"):
        try:
            description[name] = version(name)
        except PackageNotFoundError:
            description[name] = None
    return description


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Results:
    """The rows of one output folder. settings, environment: common to all of its rows; command: the command line that
    asked for them, noted in the file unless it is empty.

    Raises ConfigError when the folder holds rows that were measured with other settings or in another environment.
    """

    def __init__(
        self, kind: Kind, folder: Path, settings: dict, environment: dict, overwrite: bool = False, command: str = ""
    ):
        self.kind, self.folder, self.settings, self.environment = kind, folder, settings, environment
        self.command = command
        self.rows: list[dict] = []
        if (folder / FILE).is_file() and not overwrite:
            old = read(folder, kind)
            differences = different(old, {"settings": settings, "environment": environment})
            if differences:
                raise ConfigError(
                    f"--output {str(folder)!r} holds rows measured otherwise: {'; '.join(differences)}; possible: "
                    "another folder, or --overwrite"
                )
            self.rows = old["rows"]

    def has(self, key: tuple, resolved: dict | None = None) -> bool:
        """Whether the row with these values of the kind's key was measured, with the strategy as it is resolved now
        (None: without one). A row that failed, or that was measured with another strategy, is removed."""
        same_key = [row for row in self.rows if tuple(row[k] for k in self.kind.key) == key]
        if any(row.get("resolved") == resolved and "failed" not in row for row in same_key):
            return True
        self.rows = [row for row in self.rows if row not in same_key]
        return False

    def add(self, row: dict) -> None:
        """Adds a finished row and writes the file."""
        self.rows.append(row)
        data = {
            "schema": self.kind.schema, "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **({"command": self.command} if self.command else {}),
            "settings": self.settings, "environment": self.environment, "definitions": self.kind.definitions,
            **self.kind.derived(self.rows), "rows": self.rows,
        }  # fmt: skip
        write_json(self.folder / FILE, data, indent=1)


def spread(values: list[float | None]) -> dict | None:
    """Median, minimum and maximum; None where there are no values or one is missing."""
    if not values or None in values:
        return None
    return {"median": median(values), "min": min(values), "max": max(values)}


def read(folder: Path, *kinds: Kind) -> dict:
    """The results in a folder, of one of these kinds; raises ConfigError when there are none, or of another version."""
    rows = {kind.schema: list_of(kind.row) for kind in kinds}
    parts = {"settings": mapping_of(anything), "environment": mapping_of(anything)}

    def shape(value: object, where: str) -> dict:
        header = record({"schema": one_of(*rows), **parts, "rows": anything})(value, where)
        return record({"rows": rows[header["schema"]]})(header, where)

    return read_json(folder / FILE, shape, "possible: a folder of vtc bench")


def different(a: dict, b: dict, free: tuple[str, ...] = ()) -> list[str]:
    """The differences between the settings (except the `free` ones) and environments of two results, as texts."""
    differences = []
    for part in ("settings", "environment"):
        names = [n for n in dict.fromkeys([*a[part], *b[part]]) if part != "settings" or n not in free]
        pairs = [(n, a[part].get(n), b[part].get(n)) for n in names]
        differences += [f"{name} {one} and {other}" for name, one, other in pairs if one != other]
    return differences


def check_comparable(kind: Kind, a: dict, b: dict) -> None:
    """Raises ConfigError, which names every difference, unless two results of one kind differ only in what may vary."""
    differences = different(a, b, kind.free)
    grids = [[kind.grid(row) for row in data["rows"]] for data in (a, b)]
    for name in dict.fromkeys(name for grid in grids for cell in grid for name in cell):
        first, second = (sorted({cell[name] for cell in grid}) for grid in grids)
        if first != second:
            differences.append(f"{name} {first} and {second}")
    cells = [sorted({tuple(cell.values()) for cell in grid}) for grid in grids]
    if not differences and cells[0] != cells[1]:
        differences.append(f"combinations {cells[0]} and {cells[1]}")
    if differences:
        raise ConfigError(
            f"these results cannot be compared: {'; '.join(differences)}; possible: runs that differ in {kind.varies} "
            "alone"
        )
