"""Finished jobs without a model: runs, tasks and sample logs made by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import vtc
from vtc.eval.metrics import aggregate
from vtc.eval.running.plan import Run
from vtc.eval.tasks import Task

MODEL = {"id": "toy", "type": "llava", "family": "llava", "digest": "00"}
TOKENS = 100
KEPT = {"hiprune-keep0.25": 25, "hiprune-keep0.1": 10, "fastv-published": 40}


class Toy(Task):
    """The answer must be the reference; a `?` is not understood."""

    name = "toy"
    version = 1
    splits = ("test",)
    max_new_tokens = 4

    def prompt(self, doc: Mapping) -> str:
        """The question."""
        return doc["question"]

    def score(self, reference: str, text: str) -> dict:
        """Exact match; `parsed` is the text."""
        return {"correct": float(text == reference), "parsed": None if text == "?" else text}


class Points(Toy):
    """Like MME: points, per picture."""

    name = "points"
    primary = "perception"
    scale = 1.0

    def tally(self, rows: Sequence[Mapping]) -> dict[str, float]:
        """Rows and pictures, and how many are right."""
        right = [row["score"]["correct"] for row in rows]
        return {"n": len(right), "right": sum(right), "pictures": 1, "both": float(all(right))}

    def figures(self, sums: Mapping) -> dict:
        """acc + acc+, times 1000 to have as many digits as MME."""
        both = aggregate.ratio(sums["both"], sums["pictures"])
        points = 1000 * (aggregate.ratio(sums["right"], sums["n"]) + both)
        return {"perception": points, f"{aggregate.PER_CATEGORY}count": points / 10}


class Thousand(Toy):
    """Like OCRBench: points of a thousand."""

    name = "thousand"
    scale = 1000.0


def run_of(name: str) -> Run:
    """The run of a name such as `hiprune-keep0.25`, `fastv-published` or `none`."""
    if name == "none":
        return Run(name, name, name)
    label, _, budget = name.partition("-")
    keep = {"keep": json.loads(budget.removeprefix("keep"))} if budget.startswith("keep") else {}
    kind = "downsample" if label == "downsample" else "vtc"
    config = vtc.load_strategy("uniform" if kind == "downsample" else label, **keep)
    return Run(name, label, kind, config, budget.removeprefix("keep"))


@dataclass
class Job:
    """What results need of a finished run on one task."""

    run: Run
    task: Task
    answers: list[dict]
    identity: dict
    key: str
    times: dict = field(default_factory=dict)

    def rows(self) -> list[dict]:
        """All of them."""
        return self.answers


def job(
    name: str, texts: str, task: Task | None = None, categories: str = "ab", pictures: int = 1, **task_identity
) -> Job:
    """A job whose samples all have the answer y and got the letters of `texts` (! is one that failed)."""
    task = task or Toy()
    rows = []
    for i, text in enumerate(texts):
        failed = text == "!"
        after = KEPT.get(name, TOKENS)
        rows.append({
            "id": f"{i:04d}", "group": f"g{i // pictures}", "category": categories[i % len(categories)],
            "prompt": "?", "reference": "y", "text": None if failed else text, "images": 1,
            "score": None,  # as in an old log
            "visual_before": None if failed else TOKENS, "visual_after": None if failed else after,
            "visual_average": None if failed else after, "text_in": 10, "tokens_out": 1,
            "prefill_flops": [None, None] if failed else [200, 2 * after],
            "paper_flops": [None, None], "error": "RuntimeError: no way" if failed else None,
        })  # fmt: skip
    about = {"name": task.name, "version": task.version, "dialect": task.dialect, "split": "test"}
    data = {"id": "here", "config": None, "split": "test", "revision": "1"}
    changed = {key: task_identity[key] for key in about if key in task_identity}
    identity = {
        "task": {**about, "data": {**data, **task_identity.get("data", {})}, **changed},
        "seed": 0,
        "prompt": {"system": task_identity.get("system"), "pad_square": False},
        "generation": {"max_new_tokens": task_identity.get("max_new_tokens", 4), "batch_size": 1},
    }
    seconds = {"vision": 0.1, "selection": 0.01, "prefill": 0.2, "decode": 0.3, "total": 0.7}
    times = {row["id"]: {"batch": 1, "seconds": seconds} for row in rows if row["error"] is None}
    return Job(run_of(name), task, rows, identity, f"key of {name}", times)


def save(output: Path, one: Job, key: str | None = None) -> None:
    """Writes the job's sample log, as the runner does."""
    path = output / "samples" / f"{one.run.name}.{one.task.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"schema": "vtc.eval.samples/3", "key": key or one.key, "identity": one.identity}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *one.answers)), encoding="utf-8")


def strict(path: Path) -> dict:
    """A JSON file without NaN and infinities."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
