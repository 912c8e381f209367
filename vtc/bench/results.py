"""results.json of `vtc bench`: written row by row, taken up again, and compared only with what is comparable."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from vtc import __version__
from vtc.bench.rounds import DEFINITIONS, Case
from vtc.core.errors import ConfigError
from vtc.io.files import read_json, write_json
from vtc.io.shapes import anything, list_of, mapping_of, number, one_of, or_none, record, text, whole

SCHEMA = "vtc.bench/1"
FILE = "results.json"
RATIOS = ("ttft/oracle", "decode/baseline", "decode/oracle", "peak/baseline", "kv/baseline")
KEY = ("strategy", "keep", "batch", "prompt", "asked")
SHAPE = {"batch": "batch sizes", "prompt": "prompt lengths", "visual": "visual tokens"}


def environment(device: torch.device) -> dict:
    """Versions and machine, as far as they explain a time."""
    found = {
        "vtc": __version__, "python": platform.python_version(), "system": platform.system(),
        "processor": _processor(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }  # fmt: skip
    for name in ("torch", "transformers", "triton", "flash-attn"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Results:
    """The rows of one output folder. settings, environment: of every row in it.

    Raises ConfigError when the folder holds rows that were measured otherwise.
    """

    def __init__(self, folder: Path, settings: dict, environment: dict, overwrite: bool = False):
        self.folder, self.settings, self.environment = folder, settings, environment
        self.rows: list[dict] = []
        if (folder / FILE).is_file() and not overwrite:
            old = read(folder)
            other = different(old, {"settings": settings, "environment": environment})
            if other:
                raise ConfigError(
                    f"--output {str(folder)!r} holds rows measured otherwise: {'; '.join(other)}; possible: another "
                    "folder, or --overwrite"
                )
            self.rows = old["rows"]

    def has(self, case: Case, resolved: dict) -> bool:
        """Whether the row of a case is there, for the strategy as it is resolved now; forgets one of another."""
        key = (case.strategy, case.keep, case.batch, case.prompt, case.visual)
        mine = [row for row in self.rows if tuple(row[k] for k in KEY) == key]
        if any(row["resolved"] == resolved for row in mine):
            return True
        self.rows = [row for row in self.rows if row not in mine]
        return False

    def add(self, row: dict) -> None:
        """Puts a finished row into the file."""
        self.rows.append(row)
        data = {
            "schema": SCHEMA, "created": datetime.now(UTC).isoformat(timespec="seconds"), "settings": self.settings,
            "environment": self.environment, "definitions": DEFINITIONS, "rows": self.rows,
        }  # fmt: skip
        write_json(self.folder / FILE, data, indent=1)


_spread = record({"median": number(), "min": number(), "max": number()})
_system = record(
    {**dict.fromkeys(("vision", "selection", "prefill", "ttft", "decode", "rate"), _spread),
     **dict.fromkeys(("peak_bytes", "kv_bytes"), number(0))}
)  # fmt: skip
ROW = record(
    {
        "strategy": text, "keep": text, "batch": whole(1), "prompt": whole(), "asked": whole(), "resolved": anything,
        "tokens": record({"visual": whole(), "average": number(0)}),
        "systems": record({"baseline": _system, "strategy": _system}, {"oracle": _system}),
        "ratios": record({"ttft/baseline": _spread}, dict.fromkeys(RATIOS, _spread)),
        "oracle": record({}, {"missing": text}),
        "scoring": or_none(record({"median": number(), "observed": whole(), "depth": whole()})),
    }
)  # fmt: skip
SETTINGS = {"settings": mapping_of(anything), "environment": mapping_of(anything)}
SHAPE_OF_FILE = record({"schema": one_of(SCHEMA), **SETTINGS, "rows": list_of(ROW)})


def read(folder: Path) -> dict:
    """The results in a folder; raises ConfigError when there are none of `vtc bench`."""
    return read_json(folder / FILE, SHAPE_OF_FILE, "possible: a folder of vtc bench")


def different(a: dict, b: dict) -> list[str]:
    """What settings and environment of two results do not have in common, as texts."""
    found = []
    for part in ("settings", "environment"):
        names = dict.fromkeys([*a[part], *b[part]])
        found += [f"{n} {a[part].get(n)} and {b[part].get(n)}" for n in names if a[part].get(n) != b[part].get(n)]
    return found


def check_comparable(a: dict, b: dict) -> None:
    """Raises ConfigError, naming everything, unless two results differ in strategy and keep alone."""
    found = different(a, b)
    for key, name in SHAPE.items():
        mine, other = (sorted({_shape(row)[key] for row in data["rows"]}) for data in (a, b))
        if mine != other:
            found.append(f"{name} {mine} and {other}")
    shapes = [sorted({tuple(_shape(row).values()) for row in data["rows"]}) for data in (a, b)]
    if not found and shapes[0] != shapes[1]:
        found.append(f"(batch, prompt, visual tokens) {shapes[0]} and {shapes[1]}")
    if found:
        raise ConfigError(
            f"these results cannot be compared: {'; '.join(found)}; possible: runs that differ in strategy and keep "
            "alone"
        )


def _shape(row: dict) -> dict:
    return {"batch": row["batch"], "prompt": row["prompt"], "visual": row["tokens"]["visual"]}


def break_even(points: Sequence[tuple[float, float]]) -> tuple[float | None, str]:
    """Visual tokens below which a strategy costs more than it saves, and the same in words.

    points: (visual tokens, time to first token relative to the baseline). Between the two sizes where the ratio comes
    to 1 for good, it is interpolated linearly; None where it is always on one side.
    """
    points = sorted(points)
    if not points:
        return None, "nothing was measured"
    least, (most, last) = points[0][0], points[-1]
    if last > 1:
        return None, f"never within {least:g} to {most:g}"
    above = [i for i, (_, ratio) in enumerate(points) if ratio > 1]
    if not above:
        return None, f"below {least:g}, the smallest measured"
    (n0, r0), (n1, r1) = points[above[-1]], points[above[-1] + 1]
    found = n0 + (n1 - n0) * (r0 - 1) / (r0 - r1)
    return found, f"at {found:.0f}"


def break_evens(rows: list[dict]) -> list[dict]:
    """The break-even point of each strategy, keep, batch and prompt length that was measured at several sizes."""
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for row in rows:
        key = row["strategy"], row["keep"], row["batch"], row["prompt"]
        groups.setdefault(key, []).append((row["tokens"]["visual"], row["ratios"]["ttft/baseline"]["median"]))
    found = []
    for (strategy, keep, batch, prompt), points in groups.items():
        if len(points) > 1:
            tokens, words = break_even(points)
            found.append(
                {"strategy": strategy, "keep": keep, "batch": batch, "prompt": prompt, "tokens": tokens, "words": words}
            )
    return found
