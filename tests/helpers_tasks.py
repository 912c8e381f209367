"""What the tests of benchmarks share: rows of a fixture or of golden data to scored rows, sums and figures."""

import gzip
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from vtc.eval.data.docs import Docs
from vtc.eval.tasks import TASKS, Task

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures" / "tasks"


def opened(name: str, dialect: str = "llava", **options) -> tuple[Task, Docs]:
    """A task and the docs of its fixture."""
    task = TASKS[name](dialect=dialect)
    return task, task.open(place=str(FIXTURES / f"{name}.jsonl"), **options)


def docs_of(docs: Docs) -> list[dict]:
    """All docs without pictures."""
    return [docs.text(i) for i in range(len(docs))]


def scored(task: Task, docs: Iterable[Mapping], texts: Sequence[str]) -> list[dict]:
    """Rows as in a sample log; what was written to one and read again is what counts."""
    rows = []
    for doc, text in zip(docs, texts, strict=True):
        reference = json.loads(json.dumps(task.reference(doc), allow_nan=False))
        names = {"id": task.ident(doc), "group": task.group(doc), "category": task.category(doc)}
        score = task.score(reference, text)
        assert json.loads(json.dumps(score, allow_nan=False)) == score
        assert 0 <= score["correct"] <= 1
        rows.append({**names, "reference": reference, "text": text, "score": score, "error": None})
    return rows


def tallies(task: Task, rows: Iterable[Mapping]) -> list[dict[str, float]]:
    """The sums of each group."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    return [task.tally(members) for members in groups.values()]


def added(sums: Iterable[Mapping], weights: Iterable = ()) -> dict:
    """Sums over groups, each times its weight."""
    sums = list(sums)
    total: dict = defaultdict(float)
    for part, weight in zip(sums, list(weights) or [1.0] * len(sums), strict=True):
        for name, value in part.items():
            total[name] = total[name] + value * weight
    return dict(total)


def figures_of(task: Task, rows: Iterable[Mapping]) -> dict:
    """The figures of rows; on the way, figures of 20 replicates at once must equal those of each alone."""
    sums = tallies(task, rows)
    weights = np.random.default_rng(0).integers(0, 3, (len(sums), 20)).astype(float)
    together = task.figures(added(sums, weights))
    for r in range(weights.shape[1]):
        alone = task.figures(added(sums, weights[:, r]))
        assert alone.keys() == together.keys()
        for name, value in together.items():
            assert np.shape(value) == (20,), name
            np.testing.assert_allclose(value[r], alone[name], rtol=1e-12, err_msg=name)
    return task.figures(added(sums))


def golden_file(*parts: str) -> Path:
    """A file of the golden data (see tests/test_golden.py for where that is); skips the test where there is none."""
    named = [Path(part) for part in os.environ.get("VTC_GOLDEN_DIR", "").split(os.pathsep) if part]
    for folder in named or [ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"]:
        if (file := folder.joinpath(*parts)).exists():
            return file
    pytest.skip(f"no golden data: {'/'.join(parts)} is in no folder of VTC_GOLDEN_DIR")


def json_rows(file: Path) -> list[dict]:
    """The rows of JSON lines, also gzipped."""
    read: Callable = gzip.open if file.suffix == ".gz" else open
    with read(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]
