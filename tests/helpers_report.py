"""Folders to report on: made by the real runner on the demo model, and made by hand without a model."""

import json
import random
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import vtc
from tests.helpers_results import MODEL, job, save
from vtc.eval.results.runs import write_run, write_summary
from vtc.eval.runner import evaluate
from vtc.eval.running.eval_settings import EvalSettings
from vtc.eval.running.plan import Run
from vtc.eval.tasks import TASKS

EVIL = '<b>&"x"\'</b><script>alert(1)</script>'
KINDS = ("color", "shape", "count")
NAMES = ("gqa", "realworldqa")


class Page(HTMLParser):
    """The tables of a page as lists of rows of texts, its text, and what was opened but not closed."""

    VOID = {"meta", "link", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.open, self.text, self.ids = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def row(self, name: str, column: str) -> str:
        """The cell of a row in the first table with such a column."""
        table = next(t for t in self.tables if any(column in head for head in t[0]))
        place = next(i for i, head in enumerate(table[0]) if column in head)
        return next(row for row in table if row[0] == name)[place]


def ran(output: Path, **options) -> Path:
    """A folder that `vtc eval` wrote, on the bundled model with few samples."""
    given = {"strategies": ("none", "uniform", "hiprune", "downsample"), "keeps": ("0.25", "0.11"), "limit": 14}
    evaluate(EvalSettings(output, **{**given, **options}), quiet=True)
    return output


def keeping(one):
    """The same job, its counts of tokens and FLOPs those that its budget asks for."""
    keep = one.run.config.keep if one.run.kind == "vtc" else None
    for row in one.rows():
        count = row["visual_before"] if keep is None else round(keep * row["visual_before"])
        row |= {"visual_after": count, "visual_average": count, "prefill_flops": [200, 2 * count]}
    for times in one.times.values():
        times["seconds"] = {**times["seconds"], "prefill": 0.2 * (keep or 1.0)}
    return one


def answers(right: float, n: int, seed: int) -> str:
    """The letters of `helpers_results.job`: y with a probability that falls from sample to sample."""
    generator = random.Random(seed)
    return "".join("y" if generator.random() < right * (1.3 - 0.6 * i / n) else "n" for i in range(n))


def made(output: Path, jobs: list, model: dict | None = None) -> Path:
    """A folder as of `vtc eval` from hand-made jobs."""
    for one in jobs:
        save(output, one)
        write_run(output, model or MODEL, one, [])
        folder = output / "times"
        folder.mkdir(exist_ok=True)
        lines = []
        for i, (ident, times) in enumerate(one.times.items()):
            wobble = 1 + 0.02 * (i % 7)
            seconds = {part: value and value * wobble for part, value in times["seconds"].items()}
            lines.append(json.dumps({"id": ident, "batch": 1, "seconds": seconds}))
        (folder / f"{one.run.name}.{one.task.name}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    write_summary(output, model or MODEL, jobs)
    return output


def demo_job(name: str, right: float, n: int = 60, seed: int = 0, **about):
    """A job of the registered task demo, whose answers are right with a probability."""
    return keeping(job(name, answers(right, n, seed), TASKS["demo"](), KINDS, **{"version": 2, **about}))


def with_knobs(one, **knobs):
    """The same job with other knobs of its strategy, and so with another key."""
    config = vtc.load_strategy(one.run.label, keep=one.run.config.keep, **knobs)
    key = f"{one.key} {sorted(knobs.items())}"
    return replace(one, run=Run(one.run.name, one.run.label, "vtc", config, one.run.budget), key=key)


def over_tasks(output: Path, n: int = 80, tasks: tuple[str, ...] = NAMES) -> Path:
    """A folder with several benchmarks."""
    runs = {"none": 0.8, "hiprune-keep0.25": 0.78, "hiprune-keep0.1": 0.7, "uniform-keep0.25": 0.5,
            "uniform-keep0.1": 0.3, "downsample-keep0.25": 0.55}  # fmt: skip
    jobs = []
    for number, name in enumerate(tasks):
        task = TASKS[name]()
        for run, right in runs.items():
            # The same seed for all runs of a task, so that they agree on most samples, as real ones do.
            one = keeping(job(run, answers(right, n, number), task, KINDS, version=task.version))
            jobs.append(replace(one, key=f"{one.key} on {name}"))
    return made(output, jobs)


def sweep(folder: Path, trials: int = 6, n: int = 60) -> Path:
    """A search over hiprune's alpha with a held-out split, one failed cell and one that waits."""
    cells, rows = [], []

    def add(role: str, one, **params) -> str:
        ident = f"{len(cells):012x}"
        made(folder / "cells" / ident, [one])
        value = sum(row["text"] == "y" for row in one.rows()) / n
        cells.append({
            "id": ident, "params": {"model": "demo", **params}, "role": role, "state": "done", "error": None,
            "run": one.run.name, "values": {"accuracy": value, "flops": 50.0}, "samples": n, "seconds": 1.5,
        })  # fmt: skip
        return ident

    def hiprune(alpha: float, split: str, right: float):
        one = demo_job("hiprune-keep0.25", right, n, split=split, data={"split": split})
        return replace(with_knobs(one, alpha=alpha), key=f"hiprune {alpha} {split}")

    def none(split: str):
        return replace(demo_job("none", 0.9, n, split=split, data={"split": split}), key=f"none {split}")

    add("baseline", none("tune"), strategy="none", split="tune")
    for number in range(trials):
        alpha = round(0.1 + 0.05 * number, 2)
        params = {"strategy": "hiprune", "keep": 0.25, "split": "tune", "set": {"alpha": alpha}}
        ident = add("cell", hiprune(alpha, "tune", 0.6 + 0.04 * number), **params)
        rows.append({"number": number, "cell": ident, "values": cells[-1]["values"], "state": "COMPLETE"})
    best, reference = cells[-1]["id"], cells[1]["id"]
    add("baseline", none("test"), strategy="none", split="test")
    for cell, right in ((best, 0.8), (reference, 0.7)):
        params = next(c["params"] for c in cells if c["id"] == cell)
        add("heldout", hiprune(params["set"]["alpha"], "test", right), **{**params, "split": "test"})
    for state, error in (("failed", f"ConfigError: no {EVIL}"), ("pending", None)):
        cells.append({
            "id": f"{len(cells):012x}", "params": {"strategy": "hiprune", "keep": 0.25, "set": {"alpha": 7}},
            "role": "cell", "state": state, "error": error, "run": None, "values": {}, "samples": n, "seconds": None,
        })  # fmt: skip
    rows.append({"number": trials, "cell": cells[-2]["id"], "values": None, "state": "FAIL"})
    objectives = [
        {"name": "accuracy", "figure": "accuracy", "direction": "maximize", "task": "demo", "budget": 0.25},
        {"name": "flops", "figure": "prefill_flops", "direction": "minimize", "task": "demo", "budget": None},
    ]
    values = {side: {"best": 0.8, "reference": 0.7} for side in ("search_split", "heldout_split")}
    data = {
        "schema": "vtc.sweep/1", "name": "tuning", "file": "name: tuning\n", "created": "2026-01-01T00:00:00+00:00",
        "versions": {"vtc": vtc.__version__}, "objectives": objectives, "cells": cells,
        "search": {"sampler": "tpe", "seed": 0, "storage": "journal", "trials": rows,
                   "importance": {"accuracy": {"alpha": 0.75, "object_layer": 0.25}}},
        "pareto": [best],
        "best": [{"objective": "accuracy", "cell": best, "yaml": "best/accuracy.yaml", "values": {"accuracy": 0.8}}],
        "heldout": {"split": "test", "objective": "accuracy", "best": best, "reference": reference, **values,
                    "difference": {"value": 0.1, "stderr": 0.03, "ci95": [0.04, 0.16], "p": 0.004}, "holds": True},
    }  # fmt: skip
    (folder / "best").mkdir()
    (folder / "best" / "accuracy.yaml").write_text("keep: 0.25\nstages:\n- method: hiprune\n", encoding="utf-8")
    (folder / "sweep.json").write_text(json.dumps(data), encoding="utf-8")
    return folder
