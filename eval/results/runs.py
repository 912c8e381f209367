"""Results as JSON: one file per run, and one with all runs of the folder and their comparison with the unpruned model."""

import contextlib
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import vtc
from vtc.core.errors import ConfigError
from vtc.eval.results import saved
from vtc.eval.results.compare import BASELINE, compare_runs, fingerprint
from vtc.eval.results.counts import COSTS
from vtc.eval.results.meanings import COMPARED, FIGURES, MODES, PARTS, SECONDS, TOKENS
from vtc.eval.results.versions import PACKAGES, commit, version
from vtc.eval.metrics.aggregate import PER_CATEGORY
from vtc.eval.results.saved import RUN, RUN_SCHEMA
from vtc.eval.results.scoring import scored
from vtc.eval.results.statistics import average, bootstrap
from vtc.io.files import read_json, write_json
from vtc.io.shapes import record
from vtc.io.terminal import say

SCHEMA, SUMMARY_SCHEMA = RUN_SCHEMA, saved.SUMMARY_SCHEMA
UNTIMED = {"median": None, "mean": None}


def write_run(output: Path, model: dict, job, notes: list[str] | None) -> None:
    """Writes or updates `runs/NAME.json`: the method, the model, and per task the figures of the sample log.

    model: its record (`Loaded.record`). job: one of `vtc.eval.runner`. notes: those of the patch; None if no sample was
    answered now, in which case the file keeps its date and versions. If the file has the same method and model, its
    other tasks are kept.
    """
    path = output / "runs" / f"{job.run.name}.json"
    method, identity, rows = job.run.record(), job.identity, scored(job.task, job.rows())
    if job.run.kind == "downsample":
        mode = "grid" if any(row["visual_before"] != row["visual_after"] for row in rows) else "blur"
        method["downsample"] = {"mode": mode, "meaning": MODES[mode]}
    before = {}
    with contextlib.suppress(ConfigError):  # missing or damaged: it can always be rebuilt from the logs
        before = read_json(path, RUN, "")
    if any(before.get(k) != v for k, v in (("schema", SCHEMA), ("model", model), ("method", method))):
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
        "model": model,
        "method": method,
        "notes": notes or before.get("notes", []),
        "seeds": {"torch": identity["seed"], "strategy": _strategy_seed(method)},
        "generation": {**identity["generation"], "do_sample": False, "num_beams": 1},
        "kernels": identity.get("kernels"),
        "figures_are": FIGURES,
        "tokens_are": TOKENS,
        "seconds_are": SECONDS,
        "tasks": {**before.get("tasks", {}), job.task.name: _task_result(job, rows)},
    }
    write_json(path, run)


def _strategy_seed(method: dict) -> int | None:
    stages = (method["resolved"] or {}).get("stages", [])
    return next((stage["seed"] for stage in stages if "seed" in stage), None)


def _task_result(job, rows: list[dict]) -> dict:
    good = [row for row in rows if row["error"] is None]
    before, average_seen = _mean(good, "visual_before"), _mean(good, "visual_average")
    figures, times = bootstrap(job.task, good), job.times
    return {
        **job.identity["task"],
        "prompt": job.identity.get("prompt"),
        "max_new_tokens": job.identity["generation"]["max_new_tokens"],
        "key": job.key,
        "ids": fingerprint(row["id"] for row in rows),
        "n": len(good),
        "n_errors": len(rows) - len(good),
        "n_unparsed": unparsed(good),
        "remarks": job.task.remarks(good),
        "first_error": next((row["error"] for row in rows if row["error"] is not None), None),
        "primary": job.task.primary,
        "scale": job.task.scale,
        "figures": figures,
        "categories": _categories(figures, Counter(row["category"] for row in good)),
        "tokens": {
            "visual_before": before,
            "visual_after": _mean(good, "visual_after"),
            "visual_average": average_seen,
            "kept": average_seen / before if before and average_seen is not None else None,
            "text_in": _mean(good, "text_in"),
            "out": _mean(good, "tokens_out"),
        },
        **({"agreement": _mean_of(row.get("agreement") for row in good)} if job.identity.get("agreement") else {}),
        **{cost: _cost(good, cost) for cost in COSTS},
        "seconds": _seconds([times[row["id"]]["seconds"] for row in good if row["id"] in times]),
    }


def unparsed(rows: Iterable[Mapping]) -> int:
    """The number of answers that could not be parsed."""
    return sum("parsed" in row["score"] and row["score"]["parsed"] is None for row in rows)


def _categories(figures: dict, sizes: Mapping[str, int]) -> dict:
    """The figures per category, with the number of answered rows in each."""
    categories = {}
    for name, figure in figures.items():
        category = name.removeprefix(PER_CATEGORY)
        if category != name:
            categories[category] = {"n": sizes.get(category, 0), "value": figure["value"], "stderr": figure["stderr"]}
    return categories


def _mean(rows: list[dict], field: str) -> float | None:
    return _mean_of(row[field] for row in rows)


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _cost(rows: list[dict], field: str) -> dict:
    """The mean FLOPs per sample (before, after), and their ratio."""
    before, after = (_mean_of(row[field][i] for row in rows) for i in (0, 1))
    return {"before": before, "after": after, "ratio": after / before if before else None}


def _seconds(times: list[dict]) -> dict:
    """Median and mean of each part of the samples' time."""
    by_part = {}
    for part in PARTS:
        known = [seconds[part] for seconds in times if seconds.get(part) is not None]
        by_part[part] = {"median": statistics.median(known), "mean": statistics.fmean(known)} if known else UNTIMED
    return by_part


def write_summary(output: Path, model: dict, jobs: list) -> dict:
    """Writes `results.json` with every run of the folder, and returns its contents.

    `comparison`, per task: the runs on the same model and samples as those of `jobs`, each compared with `none`, see
    `vtc.eval.results.meanings.COMPARED`. `average`: for each of these runs, the average over tasks. model, jobs: as for
    `write_run`. Files of other versions and damaged ones are left out.
    """
    runs = [run for file in sorted((output / "runs").glob("*.json")) if (run := _read(file)) is not None]
    order = {name: i for i, name in enumerate(dict.fromkeys(job.run.name for job in jobs))}
    runs.sort(key=lambda run: (order.get(run["name"], len(order)), run["name"]))
    comparison = {}
    for name in dict.fromkeys(job.task.name for job in jobs):
        task_jobs = [job for job in jobs if job.task.name == name]
        like = next((job for job in task_jobs if job.run.name == BASELINE), task_jobs[0])
        comparison[name] = compare_runs(output, like, jobs, model, runs)
    compared: dict[str, dict] = {}
    for task, entries in comparison.items():
        for name, entry in entries.items():
            compared.setdefault(name, {})[task] = entry
    summary = {
        "schema": SUMMARY_SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "present": list(order),
        "comparison_is": COMPARED,
        "runs": runs,
        "comparison": comparison,
        "average": {name: average(entries) for name, entries in compared.items()},
    }
    write_json(output / "results.json", summary)
    return summary


def _read(path: Path) -> dict | None:
    """A run's file; None if it has another schema, or is damaged, which prints a message: logs allow to rebuild it."""
    try:
        run = read_json(path, _run, "it is left out; possible: `vtc eval score`, which makes it anew from its logs")
    except ConfigError as error:
        say(f"vtc eval: {error}", error=True)
        return None
    return run if run.get("schema") == SCHEMA else None


def _run(value: object, where: str) -> dict:
    """A run's file, checked against its shape; a file with another schema is returned unchecked."""
    return RUN(value, where) if record({})(value, where).get("schema") == SCHEMA else value
