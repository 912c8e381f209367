"""Concludes a sweep: values of all cells, the Pareto set, the best ones as strategy files, the held-out comparison."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import yaml

import vtc
from vtc.eval.results import statistics
from vtc.eval.results.saved import SWEEP_SCHEMA
from vtc.eval.results.scoring import read_scored
from vtc.eval.results.versions import PACKAGES, version
from vtc.eval.running.plan import DOWNSAMPLE, NONE
from vtc.eval.sweep.cells import (
    DONE,
    EXCLUDED,
    HELDOUT,
    PENDING,
    Place,
    SweepCell,
    cell_of,
    heldout_cells,
    planned,
)
from vtc.eval.sweep.objectives import Objective, pareto
from vtc.eval.sweep.spec import Spec
from vtc.eval.sweep.study import Search
from vtc.eval.tasks import TASKS
from vtc.io.files import write_json, write_text

SCHEMA = SWEEP_SCHEMA


class Findings:
    """The results in a sweep's folder. rows: as in sweep.json, by cell; search: its study, None if it is no search."""

    def __init__(self, spec: Spec, place: Place, search: Search | None = None):
        self.spec, self.place, self.search = spec, place, search
        self.cells: dict[str, SweepCell] = {cell.id: cell for cell in planned(spec)}
        self.trial_attributes: dict[str, Mapping] = {}
        for trial in [] if search is None else search.trials:
            if "params" in trial.user_attrs:
                cell = SweepCell(trial.user_attrs["params"])
                if cell.params["strategy"] != NONE:
                    self.cells[cell.id] = cell
                if trial.state.name == "COMPLETE":
                    self.trial_attributes[cell.id] = trial.user_attrs
        self.rows = {cell.id: self._row(cell) for cell in self.cells.values()}

    def _row(self, cell: SweepCell) -> dict:
        state = EXCLUDED if cell.excluded else self.place.state(cell.id)
        row = {
            "id": cell.id, "params": dict(cell.params), "role": cell.role, "state": state,
            "error": self.place.error(cell.id).get("error"), "run": None,
            "values": dict.fromkeys(o.name for o in self.spec.objectives), "samples": 0, "seconds": None,
        }  # fmt: skip
        known, run = self.place.read(cell.id), self.place.run(cell.id)
        if state == DONE:
            base = self.place.run(self._base(cell).id).get("tasks")
            values = {o.name: o.value(run["tasks"], base) for o in self.spec.objectives}
            row |= {"run": run["name"], "values": values, "samples": known["samples"], "seconds": known["seconds"]}
        elif cell.id in self.trial_attributes:  # run on another machine
            trial = self.trial_attributes[cell.id]
            row |= {"state": DONE, "values": self._values(trial), **{key: trial[key] for key in ("samples", "seconds")}}
        return row

    def _base(self, cell: SweepCell) -> SweepCell:
        """The unpruned cell with otherwise equal parameters."""
        params = {key: value for key, value in cell.params.items() if key != "files"}
        return SweepCell({**params, "strategy": NONE, "keep": None, "set": {}})

    def _values(self, attributes: Mapping) -> dict:
        raw = {(aim.figure, aim.task): value for aim, value in zip(self.spec.aims, attributes["raw"])}
        limited = [o for o in self.spec.objectives if o.budget is not None]
        over = {o.name for o, excess in zip(limited, attributes["excess"]) if excess > 0}
        return {o.name: None if o.name in over else raw[o.figure, o.task] for o in self.spec.objectives}

    def add(self, cell: SweepCell) -> dict:
        """Adds a cell and returns its row."""
        self.cells[cell.id] = cell
        self.rows[cell.id] = self._row(cell)
        return self.rows[cell.id]

    def groups(self) -> dict[tuple, list[str]]:
        """Groups of finished cells that differ only in the seed, by what they have in common, model first."""
        by_common: dict[tuple, list[str]] = {}
        for ident, row in self.rows.items():
            if row["state"] == DONE and row["role"] != HELDOUT:
                common = SweepCell({**row["params"], "seed": 0}).id
                model = repr((row["params"]["model"], row["params"]["model_args"]))
                by_common.setdefault((model, common), []).append(ident)
        return {key: idents for key, idents in by_common.items() if len(idents) == len(self.spec.seeds)}

    def mean(self, idents: Sequence[str], objective: Objective) -> float | None:
        """The mean of an objective over the seeds; None if it is unknown for one."""
        values = [self.rows[ident]["values"][objective.name] for ident in idents]
        return None if None in values else fmean(values)

    def front(self) -> list[str]:
        """The cells of the Pareto set of each model, including unpruned ones, ignoring budgets of objectives."""
        groups, aims, front_ids = self.groups(), self.spec.aims, []
        for model in dict.fromkeys(model for model, _ in groups):
            candidates = [idents for (other, _), idents in groups.items() if other == model]
            points = [[self._raw(idents, aim) for aim in aims] for idents in candidates]
            front_ids += [ident for i in pareto(points, [aim.sign for aim in aims]) for ident in candidates[i]]
        return front_ids

    def _raw(self, idents: Sequence[str], aim: Objective) -> float | None:
        place = self.spec.aims.index(aim)
        values = []
        for ident in idents:
            tasks = self.place.run(ident).get("tasks")
            base = self.place.run(self._base(self.cells[ident]).id).get("tasks")
            values.append(self.trial_attributes[ident]["raw"][place] if tasks is None else aim.measure(tasks, base))
        return None if None in values else fmean(values)

    def best(self) -> list[dict]:
        """For each model and objective the best finished pruned cell of the space; of equal ones the first."""
        winners, groups = [], self.groups()
        for model in dict.fromkeys(model for model, _ in groups):
            candidates = [i for (other, _), i in groups.items() if other == model and self.rows[i[0]]["role"] == "cell"]
            candidates = [i for i in candidates if self.rows[i[0]]["params"]["strategy"] not in (NONE, DOWNSAMPLE)]
            for objective in self.spec.objectives:
                known = [(v, i) for i in candidates if (v := self.mean(i, objective)) is not None]
                if known:
                    _, idents = max(known, key=lambda pair: objective.sign * pair[0])
                    winners.append((objective, idents))
        names = [objective.name for objective, _ in winners]
        rows = []
        for objective, idents in winners:
            model = self.rows[idents[0]]["params"]["model"].rstrip("/").split("/")[-1]
            name = objective.name if names.count(objective.name) == 1 else f"{objective.name}-{model}"
            values = {o.name: self.mean(idents, o) for o in self.spec.objectives}
            rows.append({"objective": objective.name, "cell": idents[0], "yaml": f"best/{name}.yaml", "values": values})
        return rows

    def resolved(self, ident: str) -> dict:
        """The fully resolved strategy of a cell."""
        run = self.place.run(ident)
        return run["method"]["resolved"] if run else self.trial_attributes[ident]["resolved"]


def conclude(findings: Findings, run: object = None) -> dict:
    """Writes best/*.yaml and sweep.json, and returns the contents of the latter.

    run: called with the cells of the held-out split to run them, once all other cells have ended; None: they are not
    run now.
    """
    spec, place, search = findings.spec, findings.place, findings.search
    best = findings.best()
    heldout = None if spec.heldout is None else _heldout(findings, best, run)
    for row in best:
        _write_strategy(place.folder / row["yaml"], findings, row)
    summary = {
        "schema": SCHEMA, "name": spec.name, "file": spec.text,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"vtc": vtc.__version__, "python": platform.python_version(),
                     **{p: version(p) for p in (*PACKAGES, *(["optuna"] if search else []))}},
        "mode": spec.mode, "objectives": [objective.record() for objective in spec.objectives],
        "cells": list(findings.rows.values()), "search": None if search is None else _searched(search),
        "pareto": findings.front(), "best": best, "heldout": heldout,
    }  # fmt: skip
    write_json(place.folder / "sweep.json", summary)
    return summary


def _searched(search: Search) -> dict:
    names = [aim.name for aim in search.spec.aims]
    trials = [
        {"number": t.number, "cell": t.user_attrs["cell"], "values": dict(zip(names, t.values)) if t.values else None,
         "params": t.params, "state": t.state.name.lower()}
        for t in search.trials if "cell" in t.user_attrs
    ]  # fmt: skip
    return {"sampler": search.spec.sampler, "seed": search.spec.seed, "storage": search.storage, "trials": trials,
            "importance": search.importance(), "importance_is": "share by PED-ANOVA (arXiv 2304.10255)"}  # fmt: skip


def _write_strategy(path: Path, findings: Findings, row: Mapping) -> None:
    """Writes a strategy file for `vtc.patch` and `--strategy`."""
    params = findings.rows[row["cell"]]["params"]
    value = row["values"][row["objective"]]
    about = f"{params['model']}, {', '.join(params['tasks'])}, split {params['split'] or 'of the task'}"
    text = f"Best {row['objective']} ({value:.6g}) of sweep {findings.spec.name}, cell {row['cell']}: {about}."
    data = {"description": text, **findings.resolved(row["cell"])}
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110))


def _heldout(findings: Findings, best: list[dict], run: object) -> dict | None:
    """The best cell and the reference on both splits; None while results are missing."""
    spec, heldout = findings.spec, findings.spec.heldout
    chosen = next((row for row in best if row["objective"] == heldout.objective), None)
    pending = any(row["state"] == PENDING for row in findings.rows.values())
    if chosen is None or pending or not (findings.search is None or findings.search.over()):
        return None
    params = findings.rows[chosen["cell"]]["params"]
    assigned = {"strategy": params["strategy"], "keep": params["keep"], **params["set"]}
    cells = heldout_cells(spec, assigned)
    if run is not None:
        run(cells)
    rows = [findings.add(cell) for cell in cells]
    reference = findings.rows[cell_of(spec, heldout.reference).id]
    objective = next(o for o in spec.objectives if o.name == heldout.objective)
    heldout_values = {"best": rows[2]["values"][objective.name], "reference": rows[1]["values"][objective.name]}
    search_values = {"best": chosen["values"][objective.name], "reference": reference["values"][objective.name]}
    known = None not in heldout_values.values()
    return {
        "split": heldout.split, "objective": objective.name, "best": chosen["cell"], "reference": reference["id"],
        "cells": {"none": rows[0]["id"], "best": rows[2]["id"], "reference": rows[1]["id"]},
        "search_split": search_values, "heldout_split": heldout_values,
        "difference": _difference(findings, objective, rows[2], rows[1], heldout_values),
        "search_difference": _difference(findings, objective, findings.rows[chosen["cell"]], reference, search_values),
        "holds": objective.sign * (heldout_values["best"] - heldout_values["reference"]) >= 0 if known else None,
        "holds_is": "on the held-out split the best is at least as good as the reference",
    }  # fmt: skip


def _difference(findings: Findings, objective: Objective, best: Mapping, other: Mapping, values: Mapping) -> dict:
    """Best minus reference; for accuracy with its error from the paired bootstrap (`statistics.compare`)."""
    plain = None if None in values.values() else values["best"] - values["reference"]
    without_error = {"value": plain, "stderr": None, "ci95": None, "p": None, "n": None}
    if objective.figure != "accuracy" or plain is None or None in (best["run"], other["run"]):
        return without_error
    task = TASKS[objective.task](dialect=best["params"]["dialect"])
    logs = [findings.place.of(row["id"]) / "samples" / f"{row['run']}.{task.name}.jsonl" for row in (best, other)]
    return statistics.compare(task, *(read_scored(log, task)[1].values() for log in logs))["difference"]
