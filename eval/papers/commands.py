"""The `vtc eval` command lines that reproduce a paper card."""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator

from vtc.eval.papers.card import FULL, Model, PaperCard, PublishedRow

DTYPE = "float16"  # of command lines, if the card names none


def commands(card: PaperCard, checkpoints: Collection[str] = ()) -> list[str]:
    """The command lines for every model that vtc can prune, in the card's order, as few as possible.

    checkpoints: only these, if any are given. Strategies with the same budgets share a line; tasks of another dialect
    and settings in place of a budget need lines of their own, with the same output folder. A strategy with several
    settings gets a folder for each.
    """
    models = [m for m in card.models if m.family and (not checkpoints or m.checkpoint in checkpoints)]
    return [line for model in models for line in _of_model(card, model)]


def _of_model(card: PaperCard, model: Model) -> Iterator[str]:
    jobs = _jobs(model) or [(1, (), (), {})]
    for dialect, tasks in _dialects(model).items():
        begun = set()
        for number, strategies, keeps, settings in jobs:
            full = () if number in begun else (FULL,)
            begun.add(number)
            yield _line(card, model, number, full + strategies, keeps, settings, tasks, dialect)


def _jobs(model: Model) -> list[tuple[int, tuple[str, ...], tuple, dict]]:
    """The grids, each with the number of its output folder: runs of one strategy with different settings would have
    the same name."""
    jobs, numbers = [], Counter()
    for strategies, keeps, settings in _grids(model):
        numbers[strategies] += bool(settings)
        jobs.append((max(1, numbers[strategies]) if settings else 1, strategies, keeps, settings))
    return jobs


def _line(
    card: PaperCard, model: Model, number: int, strategies: tuple, keeps: tuple, settings: dict, tasks: list,
    dialect: str | None,
) -> str:  # fmt: skip
    args = {"dtype": DTYPE, **(model.settings.model_args or {})}
    words = ["vtc", "eval", "--model", model.checkpoint, "--model_args", ",".join(f"{k}={v}" for k, v in args.items())]
    words += ["--strategy", ",".join(strategies)]
    words += ["--keep", ",".join(map(str, keeps))] if keeps else []
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    words += ["--tasks", ",".join(tasks)]
    words += ["--dialect", dialect] if dialect else []
    words += ["--pad-square"] if model.settings.pad_square else []
    words += ["--system", model.settings.system] if model.settings.system else []
    folder = f"results/{card.name}/{model.checkpoint.split('/')[-1]}{'' if number == 1 else f'-{number}'}"
    return " ".join(map(_quoted, [*words, "--against", card.name, "--output", folder]))


def _quoted(word: str) -> str:
    """A word quoted for a shell; double quotes around text with an apostrophe, for readability."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _dialects(model: Model) -> dict[str | None, list[str]]:
    """By dialect, the tasks with scores of strategies that vtc has, in the order of the card."""
    by_dialect: dict[str | None, list[str]] = {}
    for row in model.rows:
        for task, score in row.scores.items():
            dialect_tasks = by_dialect.setdefault(model.dialect_of(task), [])
            if row.strategy is not None and score is not None and task not in dialect_tasks:
                dialect_tasks.append(task)
    return {dialect: tasks for dialect, tasks in by_dialect.items() if tasks}


def _grids(model: Model) -> list[tuple[tuple[str, ...], tuple, dict]]:
    """Strategies with their budgets, or one strategy with settings, for one command line each."""
    budgets: dict[str, list] = {}
    with_settings: list[tuple[str, dict]] = []
    for row in model.rows:
        if row.strategy in (FULL, None) or not any(row.scores.values()):
            continue
        if row.settings is not None:
            with_settings += [] if (row.strategy, row.settings) in with_settings else [(row.strategy, row.settings)]
        elif row.asked is not None and row.asked not in budgets.setdefault(row.strategy, []):
            budgets[row.strategy].append(row.asked)
    shared: dict[tuple, list[str]] = {}
    for strategy, keeps in budgets.items():
        if keeps:
            shared.setdefault(tuple(keeps), []).append(strategy)
    grids = [(tuple(strategies), keeps, {}) for keeps, strategies in shared.items()]
    published = tuple(strategy for strategy, settings in with_settings if not settings)
    grids += [(published, (), {})] if published else []
    return grids + [((strategy,), (), settings) for strategy, settings in with_settings if settings]


def budget(row: PublishedRow) -> str:
    """The budget of a row, and the settings that vtc needs for it, in words; empty for the full model."""
    if row.strategy == FULL:
        return ""
    parts = [] if row.keep is None else [f"{row.keep} tokens" if isinstance(row.keep, int) else f"{100 * row.keep:g} %"]
    settings = row.set or {}
    parts += [", ".join(f"{key}={value}" for key, value in settings.items())] if settings else []
    return "; ".join(parts) or "its own budget"
