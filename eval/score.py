"""Scores saved answers again without a model: folders of `vtc eval`, and files of answers from elsewhere."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from rich import box
from rich.table import Table

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.docs import FOLDER, ROW, Docs, read_json
from vtc.eval.papers import against, load_card
from vtc.eval.results.runs import unparsed, write_run, write_summary
from vtc.eval.results.samples import ANEW, read_log, read_times, rewrite, run_key
from vtc.eval.results.saved import IDENTITY, METHOD, RUN
from vtc.eval.results.scoring import failure, holds, scored
from vtc.eval.results.statistics import bootstrap
from vtc.eval.running.eval_settings import EvalSettings, check_places, parse_places, split_list
from vtc.eval.showing.chart import draw
from vtc.eval.showing.console import print_summary, scaled, unit
from vtc.eval.tasks import TASKS, Task
from vtc.io.files import checked, finite
from vtc.io.files import read_json as read_file
from vtc.io.terminal import Terminal, say

TEXTS = ("text", "pred", "prediction", "response", "answer_text")  # columns that may hold the answer
ANSWER_FILES = (".jsonl", ".jsonl.gz", ".json")


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """The method of a run, as recorded in its log."""

    name: str
    method: dict

    @property
    def kind(self) -> str:
        """none, downsample or vtc."""
        return self.method["kind"]

    def record(self) -> dict:
        """The method as recorded."""
        return dict(self.method)


class SavedJob:
    """One run on one task from its log; task: scores its answers now."""

    def __init__(self, path: Path, header: dict, rows: dict[str, dict], task: Task):
        self.path, self.task, self._header = path, task, header
        self._rows = {row["id"]: row for row in scored(task, rows.values(), anew=True)}
        self._stored = rows
        self.identity = {**header["identity"], "task": {**header["identity"]["task"], "dialect": task.dialect}}
        self.key = header["key"] if self.identity == header["identity"] else run_key(self.identity)
        name = path.name.removesuffix(f".{task.name}.jsonl")
        self.run = SavedRun(name, METHOD(self.identity["method"], ""))

    def rows(self) -> list[dict]:
        """All rows of the log, scored by `task`."""
        return list(self._rows.values())

    def store(self) -> None:
        """Writes the new scores to the log, if they are of the same version and dialect as those in it."""
        better = {i: row for i, row in self._rows.items() if row["error"] is None or self._stored[i]["error"]}
        rows = {**self._stored, **better}
        if holds(self.task, self._header) and rows != self._stored:
            rewrite(self.path, self._header, rows.values())

    @cached_property
    def times(self) -> dict[str, dict]:
        """By sample `seconds` and `batch`, where known."""
        return read_times(self.path.parent.parent / "times" / self.path.name)


def score_folder(folder: Path, tasks: str | None, dialect: str | None, cards: str | None, as_json: bool) -> None:
    """Writes results, plot and tables of a folder of `vtc eval` from its sample logs, with the current scoring.

    dialect: if it is not that of the runs, the results are written to `scored-DIALECT/` in the folder, and the logs
    stay unchanged. Raises ConfigError if there is no log.
    """
    selected = _task_names(tasks)
    loaded_cards = [load_card(name) for name in (split_list("against", cards) if cards else ())]
    jobs, other = [], False
    for path in sorted((folder / "samples").glob("*.jsonl")):
        header, rows = read_log(path)
        if header is None or not rows:
            continue
        identity = checked(header["identity"], f"line 1 of {str(path)!r}", IDENTITY, ANEW)
        name, ran = (identity["task"][key] for key in ("name", "dialect"))
        if not path.name.endswith(f".{name}.jsonl") or (selected and name not in selected):
            continue
        other = other or dialect not in (None, ran)
        jobs.append(SavedJob(path, header, rows, TASKS[name](dialect=dialect or ran)))
    if not jobs:
        raise ConfigError(f"{str(folder)!r} has no sample log to score; possible: the --output of a `vtc eval`")
    output = folder / f"scored-{dialect}" if other else folder
    models = {json.dumps(model := _model(folder, job), sort_keys=True): model for job in jobs}
    console = Terminal(stderr=as_json)
    for model in models.values():
        model_jobs = [job for job in jobs if _model(folder, job) == model]
        for job in model_jobs:
            job.store()
            write_run(output, model, job, None)
        summary = write_summary(output, model, model_jobs)
        picture = draw(summary, output / "accuracy_vs_tokens.png")
        print_summary(summary, output, picture, console)
        for card in loaded_cards:
            against(card, summary, console, output)
    if as_json:
        say(json.dumps(summary, indent=2, ensure_ascii=False))


def _task_names(tasks: str | None) -> tuple[str, ...]:
    """The names in --tasks, empty if it is not given; raises ConfigError for an unknown benchmark."""
    return tuple(TASKS[name].name for name in (split_list("tasks", tasks) if tasks else ()))


def _model(folder: Path, job: SavedJob) -> dict:
    """The model's record from the run's results or, if the run was killed before it had any, from its log."""
    path = folder / "runs" / f"{job.run.name}.json"
    try:
        return read_file(path, RUN, "")["model"]
    except ConfigError:
        return {"id": None, "type": None, "family": None, **job.identity["model"]}


def score_answers(place: Path, tasks: str | None, dialect: str | None, dataset_path: str | None, as_json: bool) -> None:
    """Prints the figures for files of answers to one benchmark, each with its bootstrap error.

    place: a file, a folder with such files, or a folder of folders named after benchmarks. tasks: the benchmark; None
    if the name of the place starts with it. Raises ConfigError in one line for anything that does not fit.
    """
    selected = _task_names(tasks)
    if not place.exists():
        raise ConfigError(f"{shown(str(place))} does not exist; possible: a folder of `vtc eval`, or files of answers")
    if tasks is None and place.is_dir() and not _answer_files(place):
        below = [folder for folder in sorted(place.iterdir()) if folder.is_dir() and _answer_files(folder)]
        below = [folder for folder in below if len(_named_after(folder)) == 1]
        for folder in below:
            score_answers(folder, None, dialect, dataset_path, as_json)
        if below:
            return
    names = selected or _named_after(place)
    if len(names) != 1:
        problem = "--tasks is missing" if tasks is None else f"--tasks {shown(tasks)} is not one benchmark"
        raise ConfigError(f"{problem}; possible: --tasks with the one that {shown(str(place))} answers")
    task = TASKS[names[0]](dialect=dialect or "llava")
    places = parse_places(dataset_path or {})
    check_places(places, names)
    data = EvalSettings(output=place, tasks=names, dataset_path=places).place(task.name)
    docs = None if data is None else task.open(place=data)
    rows = [row for file in _files(place) for row in answered(task, file, docs)]
    twice = len(rows) - len({row["id"] for row in rows})
    if twice:
        raise ConfigError(f"{twice} samples occur twice in {str(place)!r}; possible: each id once")
    figures = bootstrap(task, rows)
    remarks = task.remarks(rows)
    if as_json:
        figures = finite(figures)
        record = {"task": task.name, "version": task.version, "dialect": task.dialect, "n": len(rows)}
        record |= {"n_unparsed": unparsed(rows), "remarks": remarks}
        say(json.dumps({**record, "primary": task.primary, "figures": figures}, indent=2))
        return
    console, title = Terminal(), f"task {task.name}, dialect {task.dialect}, {len(rows)} answers"
    for line in (title, *remarks):
        console.say(line)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, justify in (("figure", "left"), (unit(task.scale), "right"), ("+- error", "right")):
        table.add_column(column, justify=justify, no_wrap=True)
    for name, figure in figures.items():
        cells = [scaled(figure[key], task.scale) for key in ("value", "stderr")]
        table.add_row(name, *cells, style="bold" if name == task.primary else "")
    console.print(table)


def _answer_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name.endswith(ANSWER_FILES))


def _named_after(place: Path) -> tuple[str, ...]:
    """The benchmarks whose first word is the first word of the file's or folder's name."""
    first = place.resolve().name.lower().replace("-", "_").replace(".", "_").split("_")[0]
    return tuple(name for name in TASKS if first == name.split("_")[0])


def _files(place: Path) -> list[Path]:
    files = _answer_files(place) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"{str(place)!r} holds no answers; possible: {', '.join(ANSWER_FILES)}")
    return files


def answered(task: Task, file: Path, docs: Docs | None) -> list[dict]:
    """Sample rows from a file of answers. docs: the data with the right answers, None if the rows have them."""
    known = None if docs is None else {task.names(doc)["id"]: doc for doc in map(docs.text, range(len(docs)))}
    rows = []
    for number, raw in enumerate(read_json(file)):
        where = f"answer {number + 1} of {file.name!r}"
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{where} is a {type(raw).__name__}; possible: an object with columns")
        column = next((name for name in TEXTS if isinstance(raw.get(name), str)), None)
        if column is None:
            raise ConfigError(f"{where} has columns {shown(list(raw))}; possible for its text: {', '.join(TEXTS)}")
        doc = {**raw, ROW: number, FOLDER: file.parent} if known is None else _doc_of(task, raw, known, where)
        rows.append(_row(task, doc, raw[column], where))
    return rows


def _doc_of(task: Task, raw: Mapping, known: Mapping, where: str) -> Mapping:
    """The doc that an answer belongs to, by the task's id or by the usual columns."""
    for name in (lambda: task.ident(raw), *[lambda key=key: str(raw[key]) for key in ("id", "question_id", "index")]):
        if (ident := _try(name)) in known:
            return known[ident]
    raise ConfigError(f"{where} is of no sample in the data; possible: the id or question_id of one")


def _try(call: Callable) -> object:
    try:
        return call()
    except Exception:  # the answer's columns may hold anything
        return None


def _row(task: Task, doc: Mapping, text: str, where: str) -> dict:
    try:
        known = {"reference": task.reference(doc), "group": task.group(doc), "category": task.category(doc)}
        score = task.score(known["reference"], text.strip())
        return {"id": task.ident(doc), **known, "text": text, "score": score, "error": None}
    except KeyError as error:
        raise ConfigError(
            f"{where} lacks column {error} of task {task.name!r}; possible: --dataset-path with the benchmark's data"
        ) from None
    except Exception as error:
        raise ConfigError(f"{where}: {failure(error)}") from None
