"""The runs of a folder beside its unpruned one, sample by sample, from their logs."""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from vtc.core.errors import ConfigError
from vtc.eval.results import saved
from vtc.eval.results import statistics
from vtc.eval.results.samples import read_log
from vtc.eval.results.scoring import scored
from vtc.io.files import parsed

BASELINE = "none"
SAME = ("version", "dialect", "split", "data", "prompt", "max_new_tokens", "ids")
NO_DOWNSAMPLE = "no downsample run with the same samples is in the folder"


def fingerprint(idents: Iterable[str]) -> str:
    """16 hex digits that tell sets of samples apart."""
    return hashlib.sha256("\n".join(sorted(idents)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def compare_runs(output: Path, like: object, jobs: list, model: Mapping, runs: list[dict]) -> dict[str, dict]:
    """By name of each run that is comparable with the job `like`: what `meanings.COMPARED` says, without the average.

    jobs: of the present evaluation; other runs' answers are read from their logs in `output`. runs: what the files of
    runs say. Without a comparable `none` there are only numbers of samples.
    """
    task = like.task
    logs = _Logs(output, task, [row["id"] for row in like.rows()], jobs)
    comparable = _comparable(like, [run for run in runs if run["model"] == model], logs)
    base = logs.rows(BASELINE) if BASELINE in comparable else None
    reduced = [run for run in comparable.values() if run["method"]["kind"] == "downsample"]
    subsets = {run["name"]: statistics.sensitive(base, logs.rows(run["name"])) for run in reduced if base is not None}
    found = {}
    for name, run in comparable.items():
        result = run["tasks"][task.name]
        entry = {"n": result["n"], "n_errors": result["n_errors"], "relative": None, "difference": None}
        if base is not None:
            rows = base if name == BASELINE else logs.rows(name)
            entry |= {**statistics.compare(task, rows, base), "n": result["n"]}
            entry |= _sensitive(rows, run, reduced, subsets, task.name)
        found[name] = entry
    return found


def _comparable(like: object, runs: list[dict], logs: "_Logs") -> dict[str, dict]:
    """The runs of one model that answered the same samples, with the logs that their results were made from."""
    results = {run["name"]: run["tasks"].get(like.task.name) for run in runs}
    wanted = results.get(like.run.name)
    if wanted is None:
        return {}
    return {
        run["name"]: run
        for run in runs
        if (result := results[run["name"]]) is not None
        and all(result[key] == wanted[key] for key in SAME)
        and logs.belongs(run["name"], result["key"])
    }


class _Logs:
    """The scored rows of the runs on one task, for the samples `idents`."""

    def __init__(self, output: Path, task: object, idents: list[str], jobs: list):
        self.output, self.task, self.idents = output, task, idents
        self.jobs = {job.run.name: job for job in jobs if job.task.name == task.name}

    def path(self, name: str) -> Path:
        """Of a run's log."""
        return self.output / "samples" / f"{name}.{self.task.name}.jsonl"

    def belongs(self, name: str, key: str) -> bool:
        """Whether the run's log is the one that its result was made from."""
        if name in self.jobs:
            return True
        with contextlib.suppress(OSError, ConfigError), self.path(name).open("rb") as log:
            return parsed(log.readline(), "", saved.HEADER, "")["key"] == key
        return False

    def rows(self, name: str) -> list[dict]:
        """In the order of `idents`."""
        if name in self.jobs:
            known = {row["id"]: row for row in self.jobs[name].rows()}
        else:
            known = read_log(self.path(name))[1]
        return scored(self.task, (known[ident] for ident in self.idents if ident in known))


def _sensitive(rows: list, run: dict, reduced: list[dict], subsets: dict[str, set], task: str) -> dict:
    """The run's accuracy on the compression-sensitive samples, or why there is none."""
    if not reduced:
        return {"sensitive": None, "sensitive_reason": NO_DOWNSAMPLE}
    same = [other for other in reduced if other["method"]["budget"] == run["method"]["budget"]]
    chosen = (same or sorted(reduced, key=lambda other: _share(other, task)))[0]["name"]
    return {"sensitive": {**statistics.accuracy_on(subsets[chosen], rows), "downsample": chosen}}


def _share(run: dict, task: str) -> float:
    """A budget as a share of the visual tokens."""
    keep, before = run["method"]["keep"], run["tasks"][task]["tokens"]["visual_before"]
    return keep if isinstance(keep, float) else keep / before if before else float(keep)
