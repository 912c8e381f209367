"""The cells of a sweep: their parameters, folders and locks.

A cell is named by the hash of its parameters and has a folder of its own in DIR/cells: an ordinary output of `vtc
eval` with an additional `cell.json`. A worker holds a lock (flock) on the file `lock` in that folder, which is released
when its process ends, however it ends. The folder must be on a file system whose locks work for all workers (local
ones, NFS 4).
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import vtc
from vtc.core.errors import ConfigError
from vtc.eval.results import saved
from vtc.eval.running.eval_settings import EvalSettings
from vtc.eval.running.plan import NONE, plan
from vtc.eval.sweep.space import MOST, draw, grid, is_excluded
from vtc.eval.sweep.spec import Spec
from vtc.eval.tasks import TASKS
from vtc.io.files import read_json, refused, write_json, write_text
from vtc.io.shapes import Shape

BASELINE, CELL, HELDOUT = "baseline", "cell", "heldout"
DONE, FAILED, PENDING, EXCLUDED = "done", "failed", "pending", "excluded"
SCHEMA = "vtc.sweep.cell/1"
TRIES = 100  # the most draws per random cell, as some are excluded or equal
SETTINGS = ("dialect", "split", "limit", "batch_size", "max_new_tokens", "system", "pad_square", "dataset_path")


@dataclass(frozen=True)
class SweepCell:
    """One evaluation. params: everything that defines it. role: baseline, cell or heldout. excluded: it is not run."""

    params: Mapping
    role: str = CELL
    excluded: bool = False
    id: str = field(init=False)

    def __post_init__(self):
        text = json.dumps(self.params, sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "id", hashlib.sha256(text.encode()).hexdigest()[:12])

    def settings(self, output: Path, device: str | None = None) -> EvalSettings:
        """The settings of the equivalent `vtc eval`."""
        given = {key: self.params[key] for key in SETTINGS if self.params[key] is not None}
        return EvalSettings(
            output, model=self.params["model"], model_args=dict(self.params["model_args"]),
            strategies=(self.params["strategy"],), keeps=(self.params["keep"],), overrides=dict(self.params["set"]),
            tasks=tuple(self.params["tasks"]), seed=self.params["seed"], device=device,
            agreement=self.params.get("agreement", False), **given,
        )  # fmt: skip

    @property
    def label(self) -> str:
        """The method in words."""
        keep = [] if self.params["keep"] is None else [f"keep={self.params['keep']}"]
        return " ".join([self.params["strategy"], *keep, *(f"{k}={v}" for k, v in self.params["set"].items())])

    def full_label(self, spec: Spec) -> str:
        """The label, with the model, seed and split if they vary between the cells of the sweep."""
        more = [self.params["model"]] if len(spec.models) > 1 else []
        more += [f"seed={self.params['seed']}"] if len(spec.seeds) > 1 else []
        more += [f"on {self.params['split']}"] if self.role == HELDOUT else []
        return " ".join([self.label, *more])


def cell_of(
    spec: Spec, assigned: Mapping, model: int = 0, seed: int | None = None, role: str = CELL, **changed
) -> SweepCell:
    """The cell of an assignment; for `none`, budget and knobs are ignored. changed: a different split or limit."""
    name, args = spec.models[model]
    strategy, keep = assigned.get("strategy", NONE), assigned.get("keep")
    keep = vtc.load_strategy("uniform", keep=keep).keep if isinstance(keep, str) else keep
    knobs = {key: value for key, value in assigned.items() if key not in ("strategy", "keep")}
    if strategy == NONE:
        keep, knobs, role = None, {}, role if role == HELDOUT else BASELINE
    params = {
        "model": name, "model_args": args, "strategy": strategy, "keep": keep, "set": dict(sorted(knobs.items())),
        "tasks": list(spec.tasks), "seed": spec.seeds[0] if seed is None else seed,
        **{"dialect": "llava", "pad_square": False, "dataset_path": {}},
        **{key: spec.settings.get(key) for key in SETTINGS if key in spec.settings},
    }  # fmt: skip
    params = {**dict.fromkeys(SETTINGS), **params, **changed}
    digests = {part: _digest(Path(part)) for part in strategy.split("+") if Path(part).is_file()}
    compared = {"agreement": True} if any(o.figure == "agreement" for o in spec.objectives) else {}
    return SweepCell({**params, **compared, **({"files": digests} if digests else {})}, role)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def fixed_cells(spec: Spec) -> list[SweepCell]:
    """`none` for each model and seed, and the reference of the held-out comparison."""
    every = [(model, seed) for model in range(len(spec.models)) for seed in spec.seeds]
    cells = [cell_of(spec, {"strategy": NONE}, *one, role=BASELINE) for one in every]
    if spec.heldout is not None:
        cells.append(cell_of(spec, spec.heldout.reference, role=BASELINE))
    return cells


def heldout_cells(spec: Spec, best: Mapping) -> list[SweepCell]:
    """`none`, the reference and the best assignment on the held-out split."""
    changed = {"split": spec.heldout.split, "limit": spec.heldout.limit or spec.settings.get("limit")}
    assignments = ({"strategy": NONE}, spec.heldout.reference, best)
    return [cell_of(spec, assigned, role=HELDOUT, **changed) for assigned in assignments]


def planned(spec: Spec) -> list[SweepCell]:
    """All cells of a grid or a random draw, the fixed ones first, each once; for a search only the fixed ones."""
    cells = fixed_cells(spec)
    for model in range(len(spec.models)) if spec.mode != "search" else ():
        for seed in spec.seeds:
            for assigned in _assignments(spec, model):
                excluded = is_excluded({"model": spec.models[model][0], **assigned}, spec.exclude)
                cells.append(dataclasses.replace(cell_of(spec, assigned, model, seed), excluded=excluded))
                if len(cells) > MOST:
                    raise ConfigError(f"the sweep has more than {MOST} cells; possible: a smaller space, mode: random")
    unique: dict[str, SweepCell] = {}
    for cell in cells:
        if not (cell.excluded and cell.id in unique):
            unique[cell.id] = cell
    return list(unique.values())


def _assignments(spec: Spec, model: int) -> Iterator[dict]:
    if spec.mode == "grid":
        yield from grid(spec.space)
        return
    drawn, name = set(), spec.models[model][0]
    for number in range(TRIES * spec.n):
        assigned = draw(spec.space, spec.seed, number)
        ident = cell_of(spec, assigned).id
        if ident not in drawn and not is_excluded({"model": name, **assigned}, spec.exclude):
            drawn.add(ident)
            yield assigned
        if len(drawn) == spec.n:
            return


class Place:
    """The folder of a sweep."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        try:
            (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--output {str(folder)!r} cannot be used: {error.strerror or error}") from None
        if not os.access(self.folder / "cells", os.W_OK | os.X_OK):
            raise ConfigError(f"--output {str(folder)!r} is not writable; possible: another folder")

    def of(self, ident: str) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / ident

    @contextlib.contextmanager
    def lock(self, file: Path, wait: bool) -> Iterator[bool]:
        """Holds the lock of a file while the block runs; False if another process holds it (never with `wait`)."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = file.open("a")
        except OSError as error:
            raise refused(file, error) from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True

    def claim(self, ident: str):
        """Holds the lock of a cell while the block runs, see `lock`."""
        return self.lock(self.of(ident) / "lock", wait=False)

    def state(self, ident: str) -> str:
        """done, failed or pending; a cell with damaged files is not done."""
        if self._read(ident, "cell.json", saved.FINISHED) and self.run(ident):
            return DONE
        return FAILED if self.error(ident) else PENDING

    def _read(self, ident: str, name: str, shape: Shape) -> dict:
        try:
            return read_json(self.of(ident) / name, shape, "")
        except ConfigError:
            return {}

    def read(self, ident: str) -> dict:
        """The contents of cell.json; empty if it is missing or damaged."""
        return self._read(ident, "cell.json", saved.BEGUN)

    def error(self, ident: str) -> dict:
        """The error of a failed cell; empty if there is none."""
        return self._read(ident, "error.json", saved.ERROR)

    def run(self, ident: str) -> dict:
        """The result of the cell's run; empty if it is missing or damaged."""
        file = next(iter(sorted((self.of(ident) / "runs").glob("*.json"))), None)
        return {} if file is None else self._read(ident, f"runs/{file.name}", saved.RUN)

    def write(self, cell: SweepCell, **known) -> None:
        """Writes cell.json."""
        write_json(self.of(cell.id) / "cell.json", {"schema": SCHEMA, "id": cell.id, "params": cell.params, **known})

    def fail(self, cell: SweepCell, line: str, trace: str, start: str) -> None:
        """Writes the error in one line, and its traceback to a file of its own."""
        folder = self.of(cell.id)
        write_text(folder / "traceback.txt", trace)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / "error.json", {"error": line, "traceback": "traceback.txt", "created": now, "start": start})

    def clear(self, ident: str) -> None:
        """Deletes the files of an earlier error."""
        for name in ("error.json", "traceback.txt"):
            (self.of(ident) / name).unlink(missing_ok=True)


def check(cells: list[SweepCell]) -> None:
    """Checks each cell's strategy, budget and knobs; raises ConfigError in one line."""
    for cell in cells:
        try:
            for task in cell.params["tasks"]:
                TASKS[task](dialect=cell.params["dialect"])
            plan(cell.settings(Path()))
        except ConfigError as error:
            raise ConfigError(f"cell {cell.label}: {error}") from None
