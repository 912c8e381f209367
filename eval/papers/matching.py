"""Compares a summary of runs (`results.json`) with a paper card: which run is which row, and how much they differ."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

import vtc
from vtc.core.errors import VtcError
from vtc.eval.papers.card import FULL, Model, PaperCard, PublishedRow, Score
from vtc.eval.papers.commands import budget
from vtc.eval.tasks import TASKS

SCHEMA = "vtc.eval.against/1"
MARKED = 2  # differences of more standard errors of the measured figure are marked
CLOSE = 0.0015  # fractions that differ by no more are the same budget: 0.333 and 0.334

# Samples of each benchmark's default split: a run with fewer than 95 % of these was limited.
SIZES = {
    "gqa": 12578, "vqav2": 214354, "textvqa": 5000, "textvqa_ocr": 5000, "vizwiz": 4319, "pope": 9000, "mme": 2374,
    "mmbench_en": 4329, "mmbench_cn": 4329, "scienceqa_img": 2017, "seedbench": 14233, "ocrbench": 1000,
    "chartqa": 2500, "docvqa": 5349, "infovqa": 2801, "ai2d": 3088, "mmmu_val": 900, "mmstar": 1500,
    "realworldqa": 765, "hallusion": 951,
}  # fmt: skip
ENOUGH = 0.95


def compare(card: PaperCard, summary: Mapping) -> dict:
    """The comparison as data: `models` with their `rows`, and how many published figures have no run.

    Runs of all models in the summary are used. A model is matched by its checkpoint (the end of the id, or a folder
    named after it); otherwise the card's model of the same family is used instead and `same_checkpoint` is false.
    """
    models = []
    for record in _records(summary["runs"]):
        entries, same = _entries(card, record)
        runs = [run for run in summary["runs"] if run["model"].get("id") == record.get("id")]
        for entry in entries:
            rows = [row for row in _rows(entry, runs, summary.get("comparison", {})) if row["scores"]]
            measured = sum(len(row["scores"]) for row in rows)
            models.append({
                "measured_with": record.get("id"), "checkpoint": entry.checkpoint, "same_checkpoint": same,
                "note": entry.note, "rows": rows, "published_without_run": max(0, _published(entry) - measured),
                "published_without_method": _published(entry, known=False),
            })  # fmt: skip
    return {
        "schema": SCHEMA, "paper": card.name, "title": card.title, "url": card.url, "source": card.source,
        "models": models, "measured": card.measured, "differs": list(card.differs),
    }  # fmt: skip


def _records(runs: Sequence[Mapping]) -> list[Mapping]:
    return list({run["model"].get("id"): run["model"] for run in runs}.values())


def _entries(card: PaperCard, record: Mapping) -> tuple[list[Model], bool]:
    """The card's models that fit a model's record, and whether the checkpoint is the same."""
    name = str(record.get("id") or "").lower()
    known = {id(m): {(m.used or m.checkpoint).split("/")[-1], m.checkpoint.split("/")[-1]} for m in card.models}
    same = [m for m in card.models if any(end.lower() in name for end in known[id(m)])]
    if same:
        return same, True
    kind = (record.get("family"), record.get("type"))
    alike = [m for m in card.models if m.family is not None and m.family in kind]
    return [m for m in alike if m.checkpoint == alike[0].checkpoint], False


def _published(entry: Model, known: bool = True) -> int:
    """The number of published figures of strategies that vtc has (known) or does not have."""
    rows = [row for row in entry.rows if (row.strategy is not None) == known]
    return sum(score is not None for row in rows for score in row.scores.values())


def _rows(entry: Model, runs: Sequence[Mapping], comparison: Mapping) -> Iterator[dict]:
    """Each row with a matching run, and the scores that both have."""
    full = entry.rows[0]
    for row in entry.rows:
        run = next((run for run in runs if is_row(entry, row, run)), None)
        if run is None:
            continue
        settings = _other_settings(row, run)
        scores = [
            _score(entry, full, task, score, run, runs, comparison, settings)
            for task, score in row.scores.items()
            if score is not None and _figure(run, task, score) is not None
        ]
        yield {
            "label": row.label, "strategy": row.strategy, "budget": budget(row), "run": run["name"],
            "remark": row.remark, "average_published": row.average, "scores": scores, **_means(scores),
        }  # fmt: skip


def is_row(entry: Model, row: PublishedRow, run: Mapping) -> bool:
    """Whether a run has a row's strategy and budget.

    Budgets are equal as counts, within 0.0015 as fractions, or if the fraction of the model's tokens rounds to the
    count. Settings in place of a budget must resolve to the same strategy.
    """
    method = run["method"]
    if FULL in (row.strategy, method["name"]):
        return row.strategy == method["name"] == FULL
    if row.strategy is None or row.strategy != method["name"] or method.get("kind", "vtc") != "vtc":
        return False
    if row.settings is not None:
        expected = _resolved(row, run, row.settings)
        return method["keep"] is None and expected is not None and expected == method.get("resolved")
    return _same_budget(row.asked, method["keep"], entry.tokens or _tokens(run))


def _same_budget(published: int | float | None, requested: int | float | None, tokens: float | None) -> bool:
    if published is None or requested is None:
        return False
    if isinstance(published, int) == isinstance(requested, int):
        return published == requested if isinstance(requested, int) else abs(published - requested) <= CLOSE
    fraction, count = sorted((published, requested), key=lambda keep: isinstance(keep, int))
    return tokens is not None and round(fraction * tokens) == count


def _tokens(run: Mapping) -> float | None:
    """Visual tokens of a sample without pruning, if all tasks of the run agree."""
    counts = {task.get("tokens", {}).get("visual_before") for task in run["tasks"].values()}
    return counts.pop() if len(counts) == 1 else None


def _resolved(row: PublishedRow, run: Mapping, settings: Mapping) -> dict | None:
    """A row's strategy as vtc resolves it now, in the form of a run's record; None if it cannot be resolved."""
    try:
        dump = vtc.load_strategy(row.strategy, run["model"].get("family"), **settings).dump()
    except VtcError:
        return None
    return {key: value for key, value in dump.items() if key != "description"}


def _other_settings(row: PublishedRow, run: Mapping) -> list[str]:
    """The settings of a run that differ from the strategy's defaults, such as alpha=0.5."""
    ran = run["method"].get("resolved")
    if row.strategy == FULL or row.settings is not None or not ran:
        return []
    expected = _resolved(row, run, {"keep": run["method"]["keep"]})
    if expected is None:
        return []
    pairs = [(ran, expected), *zip(ran.get("stages", []), expected["stages"])]
    return [f"{k}={v}" for actual, default in pairs for k, v in actual.items() if k != "stages" and v != default.get(k)]


def _figure(run: Mapping, task: str, score: Score) -> Mapping | None:
    """The measured figure that corresponds to a score; None if it is missing or unknown."""
    result = run["tasks"].get(task)
    figure = None if result is None else result["figures"].get(score.figure or result["primary"])
    return None if figure is None or figure["value"] is None else figure


def _score(
    entry: Model, full: PublishedRow, task: str, score: Score, run: Mapping, runs: Sequence[Mapping],
    comparison: Mapping, settings: list[str],
) -> dict:  # fmt: skip
    result, figure = run["tasks"][task], _figure(run, task, score)
    scale = result["scale"] if score.scale is None else score.scale
    measured, stderr = figure["value"] * scale, None if figure["stderr"] is None else figure["stderr"] * scale
    difference, base = measured - score.value, full.scores.get(task)
    return {
        "task": task,
        "figure": score.figure or result["primary"],
        "n": result["n"],
        "published": score.value,
        "measured": measured,
        "stderr": stderr,
        "difference": difference,
        "beyond": stderr is not None and abs(difference) > MARKED * stderr,
        "published_of_full": score.value / base.value if base is not None and base.value else None,
        "measured_of_full": _of_full(task, score, measured / scale, run, runs, comparison),
        "remarks": _remarks(entry, task, result) + settings,
    }


def _of_full(
    task: str, score: Score, value: float, run: Mapping, runs: Sequence[Mapping], comparison: Mapping
) -> float | None:
    """The measured figure relative to the full model's: taken from the summary for the primary figure, else computed
    from a run of the full model on as many samples in the same dialect and split."""
    known = comparison.get(task, {}).get(run["name"], {}).get("relative")
    if known is not None and score.figure in (None, run["tasks"][task]["primary"]):
        return known
    result, alike = run["tasks"][task], ("n", "dialect", "split")
    for other in runs:
        base = other["tasks"].get(task) if other["method"]["name"] == FULL else None
        if base is not None and all(base.get(key) == result.get(key) for key in alike):
            figure = _figure(other, task, score)
            return value / figure["value"] if figure is not None and figure["value"] else None
    return None


def _remarks(entry: Model, task: str, result: Mapping) -> list[str]:
    """What makes a measured figure not quite comparable: another dialect or split, samples left out."""
    remarks, dialect, split = [], entry.dialect_of(task), (entry.splits or {}).get(task)
    if dialect is not None and result["dialect"] != dialect:
        remarks.append(f"other dialect: {result['dialect']}")
    if split is not None and result["split"] != split:
        remarks.append(f"split {result['split']}, published {split}")
    samples = result["n"] + result.get("n_errors", 0)
    if result["split"] == TASKS[task].splits[0] and samples < ENOUGH * SIZES.get(task, 0):
        remarks.append(f"first {samples} only")
    return remarks + ([f"{result['n_errors']} failed"] if result.get("n_errors") else [])


def _means(scores: Sequence[Mapping]) -> dict:
    """The mean relative score over the compared tasks, published and measured."""
    both = [s for s in scores if s["published_of_full"] is not None and s["measured_of_full"] is not None]
    keys = ("published_of_full", "measured_of_full")
    return {f"mean_{key}": statistics.fmean(s[key] for s in both) if both else None for key in keys}
