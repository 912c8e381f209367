"""Where every figure comes from: model, data, prompts, versions, seeds, dates, and the key of each run."""

import json
from collections.abc import Iterable

from vtc.eval.report.blocks import Cell, Code, Column, Fold, Items, Table, Text
from vtc.eval.report.read import ReportFolder
from vtc.eval.report.section_grid import Grid
from vtc.eval.report.tables import named


def facts(grid: Grid) -> Table:
    """What all runs of the section share; values that vary are marked DIFFERS."""
    runs = [entry.run for entry in grid.section.entries]
    model = grid.section.model
    named_first = ("id", "type", "family", "digest")
    rows = [("model", _words(model.get(key) for key in named_first[:3])), ("model digest", model.get("digest"))]
    rows += [(f"model {key}", _plain(model[key])) for key in sorted(model) if key not in named_first]
    for task in grid.section.tasks:
        known = grid.section.conditions[task]
        results = [m.result for m in grid.cells.values() if m.task == task]
        rows += [
            (f"{task}: dialect, split, version", _words((known["dialect"], known["split"], known["version"]))),
            (f"{task}: data", _plain(known["data"])), (f"{task}: prompt", _plain(known["prompt"])),
            (f"{task}: max_new_tokens", known["max_new_tokens"]),
            (f"{task}: samples", _several(f"{r['n'] + r['n_errors']}, ids {r['ids']}" for r in results)),
        ]  # fmt: skip
    for name in dict.fromkeys(name for run in runs for name in run["versions"]):
        rows.append((f"version of {name}", _several(run["versions"].get(name) for run in runs)))
    dates = sorted(run["created"] for run in runs)
    drawn = sorted({run["seeds"]["strategy"] for run in runs if run["seeds"].get("strategy") is not None})
    rows += [
        ("git commit", _several(run["git"] for run in runs)),
        ("seeds (torch)", _several(run["seeds"].get("torch") for run in runs)),
        ("seeds (strategies that draw)", " / ".join(map(str, drawn)) or "none draws"),
        ("generation", _several(_plain(run["generation"]) for run in runs)),
        ("kernels", _several(run["kernels"] for run in runs)),
        ("dates", dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"),
    ]
    columns = [Column("what", False), Column("value", False)]
    return Table("What the runs have in common", columns, [[Cell(key), Cell(str(value))] for key, value in rows])


def _words(values: Iterable) -> str:
    return ", ".join(str(value) for value in values if value is not None)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _several(values: Iterable) -> str:
    distinct = list(dict.fromkeys(str(value) for value in values))
    return distinct[0] if len(distinct) == 1 else "DIFFERS: " + " / ".join(sorted(distinct))


def runs(grid: Grid) -> Table:
    """Each run on each task with its key, seeds and date."""
    rows = []
    for i, entry in enumerate(grid.section.entries):
        for measured in grid.of(i):
            seeds = _words(entry.run["seeds"].get(key) for key in ("torch", "strategy"))
            texts = (
                named(grid, i), measured.task, measured.result["key"], seeds, entry.run["created"],
                str(entry.run["versions"].get("vtc")), str(entry.run["git"]), entry.name, entry.source,
            )  # fmt: skip
            rows.append([*map(Cell, texts)])
    heads = ("run", "task", "run key (sha256)", "seeds", "date", "vtc", "git", "files", "folder")
    return Table("Runs", [Column(head, False) for head in heads], rows, mono=True)


def notes(grid: Grid) -> list:
    """The notes of the patches, each once."""
    patch_notes = dict.fromkeys(note for entry in grid.section.entries for note in entry.run["notes"])
    meanings = {
        f"downsample: {entry.run['method']['downsample']['meaning']}": None
        for entry in grid.section.entries
        if "downsample" in entry.run["method"]
    }
    remarks = [*meanings, *patch_notes]
    if grid.section.duplicates:
        remarks.append(f"{grid.section.duplicates} runs were in several folders with the same key; each is shown once.")
    return [Text("Remarks on the runs"), Items(remarks)] if remarks else []


def sweep(source: ReportFolder) -> list:
    """The date and versions of a sweep, and its YAML file."""
    about = source.sweep
    versions = ", ".join(f"{name} {version}" for name, version in (about.get("versions") or {}).items())
    name, file = about.get("name") or source.name, str(about.get("file") or "")
    line = f"{name}: sweep of {about.get('created')}{'; ' * bool(versions)}{versions}."
    return [Text(line), *([Fold(f"The file of the sweep {name}", [Code(file)])] if file else [])]
