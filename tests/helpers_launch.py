"""`vtc eval` as a user starts it: one process, or several under accelerate's launcher."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

import vtc

ROOT = Path(vtc.__file__).resolve().parent.parent


def command(processes: int, options: list[str]) -> list[str]:
    """The command line on so many processes of this machine.

    --multi_gpu: without it accelerate starts one process where there is no GPU, whatever the number.
    """
    if processes == 1:
        return [sys.executable, "-m", "vtc.eval", *options]
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port]
    return [*launcher, *plain, "-m", "vtc.eval", *options]


def start(processes: int, options: list[str], **env: str) -> subprocess.Popen:
    """The running command."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.Popen(
        command(processes, options), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def finish(process: subprocess.Popen, limit: float = 180) -> tuple[int, str]:
    """Exit code and output."""
    out, _ = process.communicate(timeout=limit)
    return process.returncode, out


def kill_at(process: subprocess.Popen, output: Path, lines: int, second: bool = False, limit: float = 120) -> int:
    """SIGKILL to all processes of the command once its sample logs have so many lines; returns how many they have.

    second: there must be a sample of the second process, too.
    """
    until = time.monotonic() + limit
    while count(output) < lines or (second and count(output, "*.rank1.jsonl") < 2):
        assert time.monotonic() < until, "the run did not get under way"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    # The launcher gives each of its processes a session of its own: the group is not enough.
    top = psutil.Process(process.pid)
    for one in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()
    return count(output)


def count(output: Path, files: str = "*.jsonl") -> int:
    """Lines of sample logs, headers included."""
    return sum(path.read_bytes().count(b"\n") for path in (output / "samples").glob(files))


def logs(output: Path) -> dict[str, list[str]]:
    """The lines of each sample log, sorted: equal for equal runs."""
    return {path.name: sorted(path.read_text().splitlines()) for path in (output / "samples").iterdir()}


def figures(output: Path) -> dict:
    """Per run and task what a result says apart from dates and times."""
    found = {}
    for path in sorted((output / "runs").glob("*.json")):
        for name, task in json.loads(path.read_text())["tasks"].items():
            found[path.stem, name] = {key: value for key, value in task.items() if key != "seconds"}
    return found
