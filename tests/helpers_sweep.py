"""Sweeps for tests: tiny YAMLs, folders as they should be, and a sweep that is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from vtc.eval.sweep.spec import Spec, read_spec

ROOT = Path(__file__).resolve().parent.parent
GRID = """
limit: 7
space:
  strategy: [uniform, hiprune]
  keep: [0.5, 0.25]
  alpha: {values: [0.1, 0.3], when: {strategy: hiprune}}
objectives: [{figure: accuracy, budget: each}, tokens]
heldout: {split: tune, reference: {strategy: hiprune, keep: 0.25}}
"""
SEARCH = """
limit: 6
split: tune
mode: search
trials: 9
space:
  strategy: [hiprune]
  keep: [0.11]
  alpha: {low: 0.0, high: 1.0, step: 0.05}
  object_layer: {low: 0, high: 6, int: true}
objectives: [accuracy]
heldout: {split: test, reference: {strategy: hiprune, keep: 0.11}}
"""


def spec_of(text: str, **changed) -> Spec:
    """The sweep of a YAML text, with other values at its top."""
    import yaml

    return read_spec(yaml.safe_dump({**yaml.safe_load(text), **changed}), "toy")


def summary_of(output: Path) -> dict:
    """sweep.json."""
    return json.loads((output / "sweep.json").read_text(encoding="utf-8"))


def lasting(summary: dict) -> dict:
    """A summary without dates and times."""
    cells = {row["id"]: {key: value for key, value in row.items() if key != "seconds"} for row in summary["cells"]}
    return {**{key: value for key, value in summary.items() if key not in ("created", "cells")}, "cells": cells}


def start(file: Path, output: Path, *options: str, processes: int = 1) -> subprocess.Popen:
    """The running command, in a process group of its own; processes: of torchrun, which is beneath accelerate."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launched = [sys.executable, *(launcher if processes > 1 else [])]
    command = [*launched, "-m", "vtc", "sweep", str(file), "--output", str(output), *options]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def lines(output: Path) -> int:
    """Lines of all sample logs, headers included."""
    return sum(log.read_bytes().count(b"\n") for log in (output / "cells").glob("*/samples/*.jsonl"))


def kill_after(process: subprocess.Popen, output: Path, more: int, pause: float, limit: float = 120) -> None:
    """SIGKILL to all processes of the command, `pause` seconds after its logs have grown by so many lines."""
    wanted, until = lines(output) + more, time.monotonic() + limit
    while lines(output) < wanted:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "the sweep did not get under way"
        time.sleep(0.01)
    time.sleep(pause)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def assert_exactly_once(output: Path, limit: int) -> None:
    """Each finished cell has each of its samples once, and was finished."""
    for folder in (output / "cells").iterdir():
        assert "finished" in json.loads((folder / "cell.json").read_text()), folder
        (log,) = (folder / "samples").glob("*.jsonl")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        idents = [row["id"] for row in rows if "id" in row]
        assert len(idents) == len(set(idents)) == limit, folder
        assert not list(folder.rglob("*.part"))


def lasting_report(output: Path) -> list[dict]:
    """The rows of the sweep's report without dates, times and the folder's name."""
    passing = {"folder", "created", "first_token_seconds", "first_token_stderr", "total_seconds"}
    with (output / "report.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: value for key, value in row.items() if key not in passing} for row in csv.DictReader(file)]
    assert rows
    return rows
