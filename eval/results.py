"""Results as JSON: one file per run, and one of all runs of the folder with their comparison to the unpruned model."""

import functools
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import vtc
from vtc.eval.counts import COSTS
from vtc.eval.downsample import MODES
from vtc.eval.metrics import paired_difference
from vtc.eval.models import Loaded
from vtc.eval.timing import DEFINITIONS, PARTS

SCHEMA = "vtc.eval.run/2"
SUMMARY_SCHEMA = "vtc.eval.results/2"
TOKENS = {
    "visual_before": "visual tokens of a sample's images without pruning",
    "visual_after": "those that the last decoder layer sees at prefill",
    "visual_average": "those that a decoder layer sees on average",
    "kept": "visual_average / visual_before, what a fraction as budget asks for",
}
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "pillow")


def version(package: str) -> str | None:
    """The installed version of a package, None without it."""
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """The git commit of the checkout that vtc runs from, `+` behind it if tracked files are changed; None elsewhere."""
    root = Path(vtc.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=20, check=True)
        head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        return head + ("+" if git(["git", "status", "--porcelain", "-uno"]).stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_run(output: Path, loaded: Loaded, job, notes: list[str] | None) -> None:
    """Writes or completes `runs/NAME.json`: the method, the model, and per task the figures of the sample log.

    job: of `vtc.eval.runner`. notes: the patch's; None if nothing was answered now, and the file then keeps
    its date and versions. A file of the same method on the same model keeps its other tasks.
    """
    path = output / "runs" / f"{job.run.name}.json"
    method, identity = job.run.record(), job.log.identity
    if job.run.kind == "downsample":
        mode = "grid" if any(row["visual_before"] != row["visual_after"] for row in job.rows()) else "blur"
        method["downsample"] = {"mode": mode, "meaning": MODES[mode]}
    before = _read(path)
    if any(before.get(k) != v for k, v in (("schema", SCHEMA), ("model", loaded.record), ("method", method))):
        before = {}
    now = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"vtc": vtc.__version__, "python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "git": commit(),
    }
    run = {
        "schema": SCHEMA,
        "name": job.run.name,
        **({key: before[key] for key in now} if before and notes is None else now),
        "model": loaded.record,
        "method": method,
        "notes": notes or before.get("notes", []),
        "seeds": {"torch": identity["seed"], "strategy": _strategy_seed(method)},
        "generation": {**identity["generation"], "do_sample": False, "num_beams": 1},
        "tokens_are": TOKENS,
        "seconds_are": DEFINITIONS,
        "tasks": {**before.get("tasks", {}), job.task.name: _task_result(job)},
    }
    _write(path, run)


def _strategy_seed(method: dict) -> int | None:
    stages = (method["resolved"] or {}).get("stages", [])
    return next((stage["seed"] for stage in stages if "seed" in stage), None)


def _task_result(job) -> dict:
    rows = job.rows()
    good = [row for row in rows if row["error"] is None]
    before, average = _mean(good, "visual_before"), _mean(good, "visual_average")
    return {
        **job.log.identity["task"],
        "key": job.log.key,
        "n": len(good),
        "n_errors": len(rows) - len(good),
        "first_error": next((row["error"] for row in rows if row["error"] is not None), None),
        "primary": job.task.primary,
        "metrics": job.task.aggregate(good),
        "tokens": {
            "visual_before": before,
            "visual_after": _mean(good, "visual_after"),
            "visual_average": average,
            "kept": average / before if before and average is not None else None,
            "text_in": _mean(good, "text_in"),
            "out": _mean(good, "tokens_out"),
        },
        **{cost: _cost(good, cost) for cost in COSTS},
        "seconds": {part: _spread([row["seconds"][part] for row in good]) for part in PARTS},
    }


def _mean(rows: list[dict], field: str) -> float | None:
    return _mean_of(row[field] for row in rows)


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _cost(rows: list[dict], field: str) -> dict:
    """Means per sample of FLOPs (before, after), and their ratio."""
    before, after = (_mean_of(row[field][i] for row in rows) for i in (0, 1))
    return {"before": before, "after": after, "ratio": after / before if before else None}


def _spread(values: list[float | None]) -> dict:
    """Per sample: median and mean."""
    known = [value for value in values if value is not None]
    if not known:
        return {"median": None, "mean": None}
    return {"median": statistics.median(known), "mean": statistics.fmean(known)}


def write_summary(output: Path, loaded: Loaded, jobs: list) -> dict:
    """Writes `results.json` with every run of the folder, and returns it.

    `comparison`, per task: the runs that saw the same model and the same samples as the present ones, each with its
    primary figure relative to `none` and the paired difference in plain accuracy.
    """
    runs = [_read(file) for file in sorted((output / "runs").glob("*.json"))]
    runs = [run for run in runs if run.get("schema") == SCHEMA]
    order = {job.run.name: i for i, job in enumerate(jobs)}
    runs.sort(key=lambda run: (order.get(run["name"], len(order)), run["name"]))
    summary = {
        "schema": SUMMARY_SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "present": list(dict.fromkeys(job.run.name for job in jobs)),
        "runs": runs,
        "comparison": {},
    }
    for job in jobs:
        if job.task.name not in summary["comparison"]:
            summary["comparison"][job.task.name] = _compare(output, job, loaded, runs)
    _write(output / "results.json", summary)
    return summary


def _compare(output: Path, job, loaded: Loaded, runs: list[dict]) -> dict:
    """Figures of comparable runs by name; `job` says what is comparable."""
    like = _task_result(job)
    same = ("name", "version", "split")
    found = {}
    for run in runs:
        task = run["tasks"].get(job.task.name)
        total = 0 if task is None else task["n"] + task["n_errors"]
        like_total = like["n"] + like["n_errors"]
        if total == like_total and run["model"] == loaded.record and all(task[k] == like[k] for k in same):
            found[run["name"]] = {"n": task["n"], "n_errors": task["n_errors"], "relative": None, "difference": None}
    results = {run["name"]: run["tasks"].get(job.task.name) for run in runs}
    if "none" not in found:
        return found
    reference = results["none"]["metrics"][like["primary"]]
    baseline = _rows(output, "none", job)
    for name, entry in found.items():
        value = results[name]["metrics"][like["primary"]]
        if reference and value is not None:
            entry["relative"] = value / reference
        entry["difference"] = paired_difference(_rows(output, name, job), baseline)
    return found


def _rows(output: Path, name: str, job) -> list[dict]:
    """The rows of a sample log for the job's docs."""
    path = output / "samples" / f"{name}.{job.task.name}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    rows = {row["id"]: row for row in map(json.loads, lines)}
    return [rows[ident] for ident in job.idents() if ident in rows]


def _read(path: Path) -> dict:
    """A JSON file; empty if there is none or it is damaged, since results can always be made again from the logs."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def _write(path: Path, data: dict) -> None:
    """Puts the whole file in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)
