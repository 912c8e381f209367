"""Reads folders of `vtc eval` and of sweeps into entries: a run with its results, its folder, and its cell."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vtc.core.errors import ConfigError
from vtc.eval.results.saved import SUMMARY, SWEEP
from vtc.io.files import read_json

POSSIBLE = "possible: the --output of `vtc eval` or `vtc sweep`"


@dataclass(frozen=True)
class Entry:
    """A run of one folder. source: the folder's name on the page; run: as in results.json; cell: in a sweep, its cell;
    compared: by task, the comparison with `none` from results.json."""

    folder: Path
    source: str
    run: Mapping
    cell: Mapping | None = None
    compared: Mapping = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the run and of its logs."""
        return self.run["name"]

    @property
    def full(self) -> bool:
        """Whether it is the unpruned model."""
        return self.run["method"]["kind"] == "none"

    @property
    def blurred(self) -> bool:
        """Whether the picture is only blurred, so that all tokens are used."""
        return self.run["method"].get("downsample", {}).get("mode") == "blur"


@dataclass
class ReportFolder:
    """One of the folders of a report. sweep: its sweep.json, None for an output of `vtc eval`; files: the texts of its
    strategy files by path."""

    name: str
    folder: Path
    entries: list[Entry]
    sweep: Mapping | None = None
    files: dict[str, str] = field(default_factory=dict)


def read(folders: Sequence[Path]) -> list[ReportFolder]:
    """Reads the folders; raises ConfigError in one line for a folder without results or with another schema.

    Folders with the same name are distinguished by their position in the list.
    """
    paths = [Path(os.path.abspath(Path(folder).expanduser())) for folder in folders]
    names = [folder.name for folder in paths]
    reports = []
    for number, (folder, name) in enumerate(zip(paths, names), 1):
        if paths.index(folder) != number - 1:
            raise ConfigError(f"{str(folder)!r} is given twice; possible: each folder once")
        if not folder.is_dir():
            raise ConfigError(f"no results in {str(folder)!r}: it is no folder; {POSSIBLE}")
        called = name if names.count(name) == 1 else f"{name} ({number})"
        reports.append(_sweep(folder, called) if (folder / "sweep.json").is_file() else _evaluation(folder, called))
    return reports


def _evaluation(folder: Path, name: str) -> ReportFolder:
    path = folder / "results.json"
    if not path.is_file():
        raise ConfigError(f"no results in {str(folder)!r}: neither sweep.json nor results.json; {POSSIBLE}")
    entries = _entries(path, folder, name)
    if not entries:
        raise ConfigError(f"no results in {str(folder)!r}: its results.json has no runs; {POSSIBLE}")
    return ReportFolder(name, folder, entries)


def _entries(path: Path, folder: Path, source: str, cell: Mapping | None = None) -> list[Entry]:
    data = read_json(path, SUMMARY, "possible: `vtc eval score` makes it anew from its logs")
    return [Entry(folder, source, run, cell, _compared(data, run["name"])) for run in data["runs"]]


def _compared(data: Mapping, name: str) -> dict:
    """The comparison of a run by task, for tasks that compare with `none`."""
    tasks = data.get("comparison") or {}
    by_task = {task: entries.get(name) for task, entries in tasks.items() if "none" in entries}
    return {task: entry for task, entry in by_task.items() if entry and entry.get("difference") is not None}


def _sweep(folder: Path, name: str) -> ReportFolder:
    sweep = read_json(folder / "sweep.json", SWEEP, "possible: the same `vtc sweep` again")
    entries = []
    for cell in sweep["cells"]:
        place = folder / "cells" / cell["id"]
        if cell["state"] != "done" or not (place / "results.json").is_file():
            continue
        here = _entries(place / "results.json", place, f"{name}, cell {cell['id']}", cell)
        entries += [entry for entry in here if cell.get("run") in (None, entry.name)]
    if not entries:
        raise ConfigError(f"no results in {str(folder)!r}: no cell of the sweep is done; {POSSIBLE}")
    files = {}
    for best in sweep.get("best") or []:
        file = folder / str(best.get("yaml"))
        if file.is_file() and file.resolve().is_relative_to(folder.resolve()):
            files[str(best["yaml"])] = file.read_text(encoding="utf-8", errors="replace")
    return ReportFolder(name, folder, entries, sweep, files)
