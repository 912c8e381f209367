"""Compares runs with the unpruned one, sample by sample: the runs of a folder from their logs, or any rows."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtc.core.errors import ConfigError
from vtc.eval.results import saved, statistics
from vtc.eval.results.scoring import read_scored, scored
from vtc.io.files import parsed

BASELINE = "none"
SAME = ("version", "dialect", "split", "data", "prompt", "max_new_tokens", "ids")
NO_DOWNSAMPLE = "no downsample run with the same samples is in the folder"


def fingerprint(idents: Iterable[str]) -> str:
    """A digest of 16 hex digits that identifies a set of samples."""
    return hashlib.sha256("\n".join(sorted(idents)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


@dataclass(frozen=True)
class Reduced:
    """The scored rows of a `downsample` run. budget: as requested; share: the share of tokens that it corresponds to."""

    name: str
    budget: str | None
    share: float
    rows: Iterable[Mapping]


class Beside:
    """The unpruned run of a task, with which other runs are compared; used by tables and reports.

    base: its scored rows. reduced: the downsample runs on the same samples, which show which samples need tokens.
    """

    def __init__(self, task, base: Sequence[Mapping], reduced: Iterable[Reduced]):
        self.task, self.base = task, base
        self.reduced = [(one, statistics.sensitive(base, one.rows)) for one in reduced]

    def of(self, rows: Sequence[Mapping], budget: str | None) -> dict:
        """The result of `statistics.compare` for a run with this budget, and `sensitive`: its accuracy on the samples
        that tell methods apart, by the downsample run of the same budget, else the smallest one; None without any."""
        sensitive = None
        if self.reduced:
            same = [pair for pair in self.reduced if pair[0].budget == budget]
            chosen, subset = same[0] if same else min(self.reduced, key=lambda pair: pair[0].share)
            sensitive = {**statistics.accuracy_on(subset, rows), "downsample": chosen.name}
        return {**statistics.compare(self.task, rows, self.base), "sensitive": sensitive}


def compare_runs(output: Path, like: object, jobs: list, model: Mapping, runs: list[dict]) -> dict[str, dict]:
    """For each run that is comparable with the job `like`, by name: the entries of `meanings.COMPARED`, except average.

    jobs: those of this evaluation; the answers of other runs are read from their logs in `output`. runs: the contents
    of the run files. Without a comparable `none` the entries have only numbers of samples.
    """
    task = like.task
    logs = _Logs(output, task, [row["id"] for row in like.rows()], jobs)
    comparable = _comparable(like, [run for run in runs if run["model"] == model], logs)
    base = logs.rows(BASELINE) if BASELINE in comparable else None
    beside = None if base is None else Beside(task, base, _reduced(comparable.values(), logs, task.name))
    comparison = {}
    for name, run in comparable.items():
        result = run["tasks"][task.name]
        entry = {"n": result["n"], "n_errors": result["n_errors"], "relative": None, "difference": None}
        if beside is not None:
            rows = base if name == BASELINE else logs.rows(name)
            entry |= {**beside.of(rows, run["method"]["budget"]), "n": result["n"]}
            if entry["sensitive"] is None:
                entry["sensitive_reason"] = NO_DOWNSAMPLE
        comparison[name] = entry
    return comparison


def _reduced(runs: Iterable[dict], logs: "_Logs", task: str) -> Iterator["Reduced"]:
    for run in runs:
        method, before = run["method"], run["tasks"][task]["tokens"]["visual_before"]
        if method["kind"] == "downsample":
            keep = method["keep"]
            share = keep if isinstance(keep, float) else keep / before if before else float(keep)
            yield Reduced(run["name"], method["budget"], share, logs.rows(run["name"]))


def _comparable(like: object, runs: list[dict], logs: "_Logs") -> dict[str, dict]:
    """The runs of one model on the same samples whose logs are those that their results were made from."""
    results = {run["name"]: run["tasks"].get(like.task.name) for run in runs}
    reference = results.get(like.run.name)
    if reference is None:
        return {}
    return {
        run["name"]: run
        for run in runs
        if (result := results[run["name"]]) is not None
        and all(result[key] == reference[key] for key in SAME)
        and logs.belongs(run["name"], result["key"])
    }


class _Logs:
    """The scored rows of the runs on one task, for the samples `idents`."""

    def __init__(self, output: Path, task: object, idents: list[str], jobs: list):
        self.output, self.task, self.idents = output, task, idents
        self.jobs = {job.run.name: job for job in jobs if job.task.name == task.name}

    def path(self, name: str) -> Path:
        """The path of a run's log."""
        return self.output / "samples" / f"{name}.{self.task.name}.jsonl"

    def belongs(self, name: str, key: str) -> bool:
        """Whether a run's log is the one that its result was made from."""
        if name in self.jobs:
            return True
        with contextlib.suppress(OSError, ConfigError), self.path(name).open("rb") as log:
            return parsed(log.readline(), "", saved.HEADER, "")["key"] == key
        return False

    def rows(self, name: str) -> list[dict]:
        """The rows of a run in the order of `idents`."""
        if name in self.jobs:
            known = {row["id"]: row for row in scored(self.task, self.jobs[name].rows())}
        else:
            known = read_scored(self.path(name), self.task)[1]
        return [known[ident] for ident in self.idents if ident in known]
