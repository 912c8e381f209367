"""The blocks of a sweep: its state, trials and importance of a search, best configurations, held-out verdict."""

from collections.abc import Mapping

from vtc.eval.report import plots
from vtc.eval.report.blocks import Cell, Code, Column, Figure, Figures, Fold, Heading, Table, Text
from vtc.eval.report.read import ReportFolder
from vtc.eval.report.significance import ALPHA
from vtc.eval.showing.console import unit
from vtc.eval.tasks import TASKS

UNKNOWN = "-"
UNITS = {
    "accuracy": (100.0, "%"), "relative": (100.0, "%"), "prefill_flops": (1e-9, "GFLOPs"),
    "first_token": (1000.0, "ms"),
}  # fmt: skip


def state(sweep: Mapping) -> str:
    """The number of cells in each state."""
    states = [cell["state"] for cell in sweep["cells"]]
    counts = [f"{states.count(name)} {name}" for name in ("done", "failed", "pending", "excluded") if name in states]
    return f"{len(states)} cells: {', '.join(counts)}"


def unfinished(sweep: Mapping) -> str | None:
    """A warning if cells have no results."""
    missing = sum(cell["state"] in ("failed", "pending") for cell in sweep["cells"])
    return f"This sweep is not complete: {missing} cells have no results." if missing else None


def failures(source: ReportFolder) -> Table | None:
    """The failed cells, one line each."""
    failed = [cell for cell in (source.sweep or {}).get("cells", []) if cell["state"] == "failed"]
    if not failed:
        return None
    more = ("model", "split", "limit", "seed")
    rows = [[*map(Cell, (cell["id"], settings(cell["params"], more), str(cell.get("error"))))] for cell in failed]
    columns = [Column("cell", False), Column("settings", False), Column("error", False)]
    return Table(f"Failed cells of {source.name}", columns, rows)


def settings(params: Mapping, more: tuple[str, ...] = ()) -> str:
    """The settings of a cell in a line: `strategy=hiprune keep=0.25 alpha=0.1`. more: other parameters to include."""
    named = {key: params[key] for key in (*more, "strategy", "keep") if params.get(key) is not None}
    return " ".join(f"{key}={_value(value)}" for key, value in {**named, **(params.get("set") or {})}.items())


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def blocks(source: ReportFolder, prefix: str) -> list:
    """All blocks of a sweep."""
    sweep, parts = source.sweep, []
    objectives = {one["name"]: one for one in sweep.get("objectives") or []}
    search = sweep.get("search")
    if sweep.get("heldout"):
        parts += [Heading(3, "Does the choice hold?"), _heldout(sweep, objectives)]
    if sweep.get("best"):
        parts += [Heading(3, "Best configurations"), *_best(source, objectives)]
    if search:
        parts.append(Heading(3, "The search"))
        finished = sum(trial["state"].upper() == "COMPLETE" for trial in search["trials"])
        trials = f"{len(search['trials'])} trials, {finished} complete"
        parts.append(Text(f"Sampler {search['sampler']}, seed {search['seed']}; {trials}."))
        parts.append(Figures([*_trials(search, objectives, prefix), *_importance(search, prefix)]))
        parts.append(Fold("All trials", [_trial_table(sweep, search, objectives)]))
    return parts


def shown(value: float | None, objective: Mapping | None, sign: str = "") -> str:
    """A value of an objective as printed, see `unit_of`."""
    if value is None:
        return UNKNOWN
    scale, _ = unit_of(objective)
    return f"{scale * value:{sign}.1f}" if scale in (100, 1000) else f"{scale * value:{sign}.4g}"


def unit_of(objective: Mapping | None) -> tuple[float, str]:
    """The factor and the unit with which an objective's values are printed; for accuracy, those of the task."""
    figure, task = (objective or {}).get("figure"), (objective or {}).get("task")
    if figure == "accuracy" and task in TASKS.names():
        return TASKS[task].scale, unit(TASKS[task].scale)
    return UNITS.get(figure, (1.0, ""))


def _head(name: str, objective: Mapping | None) -> str:
    _, named = unit_of(objective)
    return f"{name}, {named}" if named else name


def verdict(sweep: Mapping) -> Text:
    """Whether the search's best is better than the paper's default on samples that the search never saw."""
    heldout = sweep["heldout"]
    objective = {one["name"]: one for one in sweep.get("objectives") or []}.get(heldout.get("objective"))
    gap, unseen, searched = (heldout.get(key) or {} for key in ("difference", "heldout_split", "search_split"))
    error = "" if gap.get("stderr") is None else f" ± {shown(gap['stderr'], objective)}"
    chance = gap.get("p") is not None and gap["p"] >= ALPHA
    p = "" if gap.get("p") is None else f" (paired bootstrap, p = {gap['p']:.2g}{', not significant' * chance})"
    word = {True: "yes, at least as good as the paper's default", False: "no"}.get(heldout.get("holds"), "not known")
    line = (
        f"Holds on the held-out split ({heldout['split']}): {word}, difference "
        f"{shown(gap.get('value'), objective, '+')}{error}{p}. The search's best has "
        f"{shown(unseen.get('best'), objective)} there, the paper's default "
        f"{shown(unseen.get('reference'), objective)}; on the split of the search they had "
        f"{shown(searched.get('best'), objective)} and {shown(searched.get('reference'), objective)}."
    )
    return Text(line, "good" if heldout.get("holds") and not chance else "bad")


def _heldout(sweep: Mapping, objectives: Mapping) -> Table:
    heldout = sweep["heldout"]
    objective = objectives.get(heldout.get("objective"))
    cells = {cell["id"]: cell for cell in sweep["cells"]}
    rows = []
    for role, called in (("best", "best of the search"), ("reference", "paper's default")):
        cell = cells.get(heldout.get(role), {"params": {}})
        sides = [(heldout.get(key) or {}).get(role) for key in ("search_split", "heldout_split")]
        texts = (called, settings(cell["params"]) or UNKNOWN, *(shown(value, objective) for value in sides))
        rows.append([*map(Cell, texts)])
    columns = [Column("", False), Column("settings", False), Column("split of the search"), Column("held-out split")]
    return Table(f"{heldout.get('objective')}: on the split of the search, and on one that it never saw", columns, rows)


def _best(source: ReportFolder, objectives: Mapping) -> list:
    cells = {cell["id"]: cell for cell in source.sweep["cells"]}
    names = list(objectives)
    rows = []
    for best in source.sweep["best"]:
        values = best.get("values") or {}
        texts = [shown(values.get(name), objectives[name]) for name in names]
        cell = cells.get(best["cell"], {"params": {}})
        rows.append([Cell(str(best["objective"]), strong=True), Cell(settings(cell["params"])), *map(Cell, texts),
                     Cell(str(best.get("yaml") or UNKNOWN)), Cell(best["cell"])])  # fmt: skip
    heads = [Column(_head(name, objectives[name])) for name in names]
    words = [Column(name, False) for name in ("best for", "settings", "file", "cell")]
    columns = [*words[:2], *heads, *words[2:]]
    notes = ["Each file is a strategy: vtc.patch(model, FILE), or vtc eval --strategy FILE."]
    files = [Fold(path, [Code(text)]) for path, text in source.files.items()]
    return [Table("The best cell of each objective, with its values", columns, rows, notes), *files]


def _trials(search: Mapping, objectives: Mapping, prefix: str) -> list[Figure]:
    figures = []
    for number, (name, objective) in enumerate(objectives.items()):
        values = [(t["number"], (t.get("values") or {}).get(name)) for t in search["trials"]]
        scale = unit_of(objective)[0]
        scaled = [(n, None if v is None else scale * v) for n, v in values]
        known = [pair for pair in scaled if pair[1] is not None]
        if not known:
            continue
        up = objective.get("direction") != "minimize"
        best = (max if up else min)(known, key=lambda pair: pair[1])
        title = f"Trials: {name}, {'higher' if up else 'lower'} is better"
        alt = (
            f"{title}. {len(values)} trials, {len(values) - len(known)} without a value. Trial {best[0]} is the best "
            f"with {shown(best[1] / scale, objective)}; the first had {shown(known[0][1] / scale, objective)}. "
            "Grey steps: the best so far."
        )
        picture = plots.trials(scaled, up, _head(name, objective), f"{prefix}t{number}-", alt)
        rows = [[Cell(str(n)), Cell(shown(v, objective))] for n, v in values]
        table = Table(f"Numbers of the plot: {title}", [Column("trial"), Column(_head(name, objective))], rows)
        figures.append(Figure(picture, title, f"Best: trial {best[0]}.", alt, table))
    return figures


def _importance(search: Mapping, prefix: str) -> list[Figure]:
    figures = []
    for number, (name, shares) in enumerate((search.get("importance") or {}).items()):
        if not shares:
            continue
        title = f"Importance of the parameters for {name}"
        order = sorted(shares, key=lambda key: (-shares[key], key))
        alt = f"{title}: " + ", ".join(f"{key} {100 * shares[key]:.0f} %" for key in order) + "."
        rows = [[Cell(key), Cell(f"{100 * shares[key]:.1f}")] for key in order]
        table = Table(f"Numbers of the plot: {title}", [Column("parameter", False), Column("share, %")], rows)
        figures.append(Figure(plots.bars(shares, f"{prefix}i{number}-", alt), title, "", alt, table))
    return figures


def _trial_table(sweep: Mapping, search: Mapping, objectives: Mapping) -> Table:
    cells = {cell["id"]: cell for cell in sweep["cells"]}
    rows = []
    for trial in search["trials"]:
        cell = cells.get(trial.get("cell"), {"params": {}})
        values = [shown((trial.get("values") or {}).get(name), one) for name, one in objectives.items()]
        rows.append([Cell(str(trial["number"])), Cell(str(trial["state"]).lower()), Cell(settings(cell["params"])),
                     *map(Cell, values), Cell(str(trial.get("cell")))])  # fmt: skip
    heads = [Column(_head(name, one)) for name, one in objectives.items()]
    columns = [Column("trial"), Column("state", False), Column("settings", False), *heads, Column("cell", False)]
    return Table("Trials", columns, rows)
