"""House rules on the rooms of eval/: what each may import of the others, and no circle of imports anywhere."""

import re
from pathlib import Path

import pytest

from tests.test_house import Part, imports, objection, python_files

OUTSIDE = ("=vtc", "vtc.core", "vtc.io", "vtc.config", "vtc.demo", "vtc.engine", "vtc.kernels", "vtc.patching")
DATA, METRICS, TASKS, RESULTS = "vtc.eval.data", "vtc.eval.metrics", "vtc.eval.tasks", "vtc.eval.results"
MODELS = ("vtc.eval.models", "vtc.eval.processors", "vtc.eval.clip_inputs")

# Each room with the rooms that it may import beside itself; a room stands below those that import it.
ROOMS = {
    r"eval/data/.*": (),
    r"eval/metrics/.*": (),
    r"eval/tasks/.*": (DATA, METRICS),
    r"eval/results/.*": (METRICS,),
    r"eval/(models|processors|clip_inputs)\.py": (DATA, *MODELS),
    r"eval/running/.*": (DATA, TASKS, RESULTS, *MODELS),
    r"eval/lmms/.*": (RESULTS, *MODELS),
    r"eval/showing/.*": (TASKS, RESULTS),
    r"eval/papers/.*": (TASKS, RESULTS),
    r"eval/inspect/.*": (DATA, RESULTS, "vtc.eval.running.eval_settings", *MODELS),
    r"eval/report/.*": (TASKS, RESULTS, "vtc.eval.showing"),
    r"eval/runner\.py": (DATA, TASKS, RESULTS, "vtc.eval.running", "vtc.eval.showing", "vtc.eval.papers", *MODELS),
    r"eval/score\.py": (DATA, TASKS, RESULTS, "vtc.eval.running.eval_settings", "vtc.eval.showing", "vtc.eval.papers"),
    r"eval/sweep/.*": (TASKS, RESULTS, "vtc.eval.running", "vtc.eval.report", "vtc.eval.runner", *MODELS),
    r"eval/__(init|main)__\.py": (),
}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_eval(room):
    """A room imports itself, what stands below it, and what a user of vtc can import."""
    files = [file for file in python_files("eval") if re.fullmatch(room, file)]
    assert files, f"no file matches {room}: the table is out of date"
    own = (".".join(("vtc", *Path(files[0]).parent.parts)),) if files[0].count("/") > 1 else ()
    part = Part(room, may=(*OUTSIDE, *ROOMS[room], *own))
    checked = ((file, item, objection(part, item)) for file in files for item in imports(file))
    assert not [f"{file}:{item.line} {item.module}: {why}" for file, item, why in checked if why]


def test_every_file_of_eval_is_in_one_room():
    """No file stands outside the table, none is in it twice."""
    homes = {file: [room for room in ROOMS if re.fullmatch(room, file)] for file in python_files("eval")}
    assert not {file: found for file, found in homes.items() if len(found) != 1}


def module_of(file: str) -> str:
    """The full name that a file is imported by."""
    parts = Path(file).with_suffix("").parts
    parts = parts if parts[0] == "vtc" else ("vtc", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one circle in the graph, its first again at the end; empty if there is none."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(edges[module] & edges.keys()):
            if found := follow(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := follow(module, []))), [])


def test_imports_run_in_no_circle():
    """No module needs, while it is imported, one that needs it; imports inside functions wait."""
    files = python_files("vtc", "patches", "eval")
    edges = {module_of(file): {item.module for item in imports(file) if not item.lazy} for file in files}
    assert circle(edges) == []
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]
