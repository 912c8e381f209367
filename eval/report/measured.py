"""One run on one task: its figure, its costs, and its answers from the sample log."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vtc.core.errors import VtcError
from vtc.eval.report.read import Entry
from vtc.eval.results.samples import read_times
from vtc.eval.results.scoring import read_scored
from vtc.eval.tasks import TASKS

FIRST = ("vision", "selection", "prefill")  # the parts of the time to the first token


@dataclass
class Measured:
    """One run on one task. compared: the comparison with `none` (`statistics.compare`, and `sensitive`), None if there
    is none; first: median time to the first token and its standard error, in seconds.

    p_none, p_best: p values of the paired bootstrap against `none` and against the best run of the same budget, None
    if there is no test; holm_none, holm_best: the same after Holm's correction.
    """

    entry: Entry
    task: str
    result: Mapping
    compared: Mapping | None = None
    first: tuple[float | None, float | None] = (None, None)
    p_none: float | None = None
    holm_none: float | None = None
    p_best: float | None = None
    holm_best: float | None = None

    @property
    def figure(self) -> Mapping:
        """The primary figure: value, stderr, ci95."""
        return self.result["figures"].get(self.result["primary"], {"value": None, "stderr": None, "ci95": None})

    @property
    def value(self) -> float | None:
        """The value of the primary figure, not scaled."""
        return self.figure["value"]

    @property
    def scale(self) -> float:
        """The factor by which the primary figure is multiplied for printing."""
        return self.result["scale"]

    @property
    def relative(self) -> float | None:
        """The primary figure divided by that of `none`."""
        return (self.compared or {}).get("relative")


def kept(measured: Measured) -> float | None:
    """The mean share of visual tokens per decoder layer; for blurred pictures, the share with as much information."""
    before, keep = measured.result["tokens"]["visual_before"], measured.entry.run["method"]["keep"]
    if measured.entry.blurred and keep is not None:
        return keep if isinstance(keep, float) else keep / before if before else None
    return measured.result["tokens"]["kept"]


def tokens(measured: Measured) -> float | None:
    """The mean number of visual tokens per decoder layer, with the same exception as `kept`."""
    before, share = measured.result["tokens"]["visual_before"], kept(measured)
    return None if share is None or before is None else share * before


def answers(measured: Measured) -> list[dict] | None:
    """The scored rows of a run on a task; None if its log is missing, of another run, or scored by another version."""
    path = measured.entry.folder / "samples" / f"{measured.entry.name}.{measured.task}.jsonl"
    with contextlib.suppress(VtcError):
        task = TASKS[measured.task](dialect=measured.result["dialect"])
        header, rows = read_scored(path, task)
        if header and header["key"] == measured.result["key"] and task.version == measured.result["version"]:
            return list(rows.values())
    return None


def first_token(measured: Measured) -> tuple[float | None, float | None]:
    """The median over samples of vision + selection + prefill, and half the width of its 68 % interval.

    The interval lies between order statistics; samples of a batch share one time and count as one. Without a log of
    times: the sum of the medians, without an error.
    """
    path = measured.entry.folder / "times" / f"{measured.entry.name}.{measured.task}.jsonl"
    parts = [measured.result["seconds"].get(part, {}).get("median") for part in FIRST]
    whole = None if None in parts else math.fsum(parts)
    try:
        rows = read_times(path).values()
        rows = [(row["batch"], [row["seconds"].get(part) for part in FIRST]) for row in rows]
    except VtcError:
        rows = []
    known = [(batch, math.fsum(seconds)) for batch, seconds in rows if None not in seconds]
    if whole is None or not known:
        return whole, None
    seconds = np.array([value for _, value in known])
    independent = math.fsum(1 / batch for batch, _ in known)
    if independent < 4:
        return float(np.median(seconds)), None
    low, middle, high = np.quantile(seconds, (0.5 - 0.5 / independent**0.5, 0.5, 0.5 + 0.5 / independent**0.5))
    return float(middle), float(high - low) / 2
