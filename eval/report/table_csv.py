"""The report as CSV: one row per run, task and figure."""

import csv
import io
from collections.abc import Sequence

from vtc.eval.report.measured import kept
from vtc.eval.report.search import settings
from vtc.eval.report.section_grid import Grid
from vtc.io.escape import cell as escaped

HEAD = (
    "section", "folder", "cell", "role", "model", "model_digest", "run", "label", "strategy", "keep", "budget",
    "settings", "seed", "task", "dialect", "split", "n", "n_errors", "figure", "primary", "value", "stderr", "ci_low",
    "ci_high", "scale", "relative", "relative_stderr", "difference", "difference_stderr", "p_none", "p_none_holm",
    "p_best", "p_best_holm", "best_of_budget", "loyalty", "visual_before", "visual_average", "kept",
    "prefill_flops_ratio", "first_token_seconds", "first_token_stderr", "total_seconds", "created", "vtc", "git", "key",
)  # fmt: skip


def text(grids: Sequence[Grid]) -> str:
    """The CSV; numbers have full precision, unknown ones are empty. Tests exist only for the primary figure."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, HEAD, restval="", lineterminator="\n")
    writer.writeheader()
    for number, grid in enumerate(grids, 1):
        for (i, task), measured in grid.cells.items():
            for name in measured.result["figures"]:
                row = _row(grid, number, i, task, name)
                writer.writerow({key: escaped(value) for key, value in row.items()})
    return stream.getvalue()


def _row(grid: Grid, number: int, i: int, task: str, name: str) -> dict:
    measured = grid.cells[i, task]
    entry, result = measured.entry, measured.result
    run, cell, figure = entry.run, entry.cell or {}, result["figures"][name]
    method, primary = run["method"], name == result["primary"]
    compared = measured.compared or {}
    gap = (compared.get("differences") or {}).get(name) or (compared.get("difference") if primary else None) or {}
    row = {
        "section": number, "folder": entry.source, "cell": cell.get("id"), "role": cell.get("role"),
        "model": grid.section.model.get("id"), "model_digest": grid.section.model.get("digest"), "run": entry.name,
        "label": grid.section.labels[i], "strategy": method["name"], "keep": method["keep"],
        "budget": method["budget"], "settings": settings(cell["params"]) if cell else None,
        "seed": run["seeds"].get("torch"), "task": task, "dialect": result["dialect"], "split": result["split"],
        "n": result["n"], "n_errors": result["n_errors"], "figure": name, "primary": int(primary),
        "value": figure["value"], "stderr": figure["stderr"], "scale": result["scale"],
        "difference": gap.get("value"), "difference_stderr": gap.get("stderr"), "loyalty": compared.get("loyalty"),
        "visual_before": result["tokens"]["visual_before"], "visual_average": result["tokens"]["visual_average"],
        "kept": kept(measured), "prefill_flops_ratio": result["prefill_flops"]["ratio"],
        "first_token_seconds": measured.first[0], "first_token_stderr": measured.first[1],
        "total_seconds": result["seconds"]["total"]["median"], "created": run["created"],
        "vtc": run["versions"].get("vtc"), "git": run["git"], "key": result["key"],
    }  # fmt: skip
    row["ci_low"], row["ci_high"] = figure.get("ci95") or (None, None)
    if primary:
        row |= {
            "relative": measured.relative, "relative_stderr": compared.get("relative_stderr"),
            "p_none": measured.p_none, "p_none_holm": measured.holm_none, "p_best": measured.p_best,
            "p_best_holm": measured.holm_best, "best_of_budget": int(any(b.best == i for b in grid.budgets)),
        }  # fmt: skip
    return row
