"""A model-based search: an Optuna study that is shared by any number of workers.

By default its storage is the journal DIR/study.journal; `--storage URL` is a database for machines that do not share
DIR. A trial is a cell; its attribute `place` identifies the folder. A trial that a killed worker left RUNNING is
recognised by the free lock of its cell, and another worker runs and finishes it. Trials with equal parameters share
one cell.

The sampler of each trial is seeded with the search's seed and the trial's number, so that a single worker gives the
same trials whether it was interrupted or not. With several workers a trial depends on which others have finished, so
trials differ from start to start.
"""

import contextlib
import fcntl
import hashlib
import json
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from vtc.core.errors import ConfigError
from vtc.eval.sweep.cells import Place, SweepCell, cell_of
from vtc.eval.sweep.space import is_excluded, suggest
from vtc.eval.sweep.spec import Spec
from vtc.io.files import write_text

JOURNAL = "study.journal"
MOST_ASKED = 20  # the most trials per requested trial, as excluded ones do not count


def optuna():
    """The Optuna module; raises ConfigError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("mode search needs Optuna; possible: pip install 'vtc-vlm[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def public(url: str | None) -> str:
    """The URL of a storage without user names, passwords and options."""
    if url is None:
        return JOURNAL
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


class Search:
    """The study of a sweep. storage: a URL, None for the journal. Raises ConfigError if it belongs to another search or
    cannot be reached."""

    def __init__(self, spec: Spec, place: Place, storage: str | None = None):
        self.optuna, self.spec, self.place = optuna(), spec, place
        self.storage = public(storage)
        self.here = "shared" if storage is None else _name_of(place)
        try:
            self.study = self._open(storage)
        except ConfigError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            for secret in filter(None, [storage, storage and urlsplit(storage).password]):
                reason = reason.replace(secret, "...")
            raise ConfigError(f"storage {self.storage!r} cannot be used: {reason[:300]}") from None
        digest = _digest(spec)
        if (known := self.study.user_attrs.get("search", digest)) != digest:
            raise ConfigError(
                f"the study {spec.name!r} in {self.storage!r} belongs to another space or other objectives ({known}); "
                "possible: another --output or name"
            )
        if "search" not in self.study.user_attrs:
            self.study.set_user_attr("search", digest)

    def _open(self, storage: str | None):
        if storage is None:
            path = self.place.folder / JOURNAL
            with self.place.lock(path.with_name("journal.lock"), wait=True):
                _mend(path)
            backend = self.optuna.storages.journal.JournalFileBackend(str(path), lock_obj=_Flock(path))
            storage = self.optuna.storages.JournalStorage(backend)
        directions = [objective.direction for objective in self.spec.aims]
        return self.optuna.create_study(
            storage=storage, study_name=self.spec.name, directions=directions, load_if_exists=True,
            sampler=self._sampler(0),
        )  # fmt: skip

    def _sampler(self, number: int):
        """A sampler seeded by the search's seed and the number of trials so far."""
        folder = "" if self.here == "shared" else self.here
        seed = int(hashlib.sha256(f"{self.spec.seed}/{number}/{folder}".encode()).hexdigest()[:8], 16)
        samplers = self.optuna.samplers
        limited = any(o.budget is not None for o in self.spec.objectives)
        older = limited and not hasattr(self.optuna.trial.Trial, "set_constraint")
        options = {"seed": seed, **({"constraints_func": _excesses} if older else {})}
        if self.spec.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if self.spec.sampler == "tpe":
            return samplers.TPESampler(**options, constant_liar=True)
        if self.spec.sampler == "nsgaii":
            return samplers.NSGAIISampler(**options, population_size=max(4, min(20, self.spec.trials // 4)))
        try:
            import scipy  # noqa: F401
        except ImportError:
            raise ConfigError("sampler gp needs scipy; possible: pip install scipy, or sampler: tpe") from None
        return samplers.GPSampler(**options, deterministic_objective=True)

    @property
    def trials(self) -> list:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def again(self) -> None:
        """Enqueues the trials of failed cells once more."""
        retried = set(self.study.user_attrs.get("retried", []))
        for trial in self.trials:
            if trial.state.name == "FAIL" and "cell" in trial.user_attrs and trial.number not in retried:
                retried.add(trial.number)
                self.study.set_user_attr("retried", sorted(retried))
                self.study.enqueue_trial(trial.params)

    def counted(self) -> list:
        """The trials that count: complete, running, or failed in this start."""
        retried = set(self.study.user_attrs.get("retried", []))
        return [
            t for t in self.trials
            if t.state.name in ("COMPLETE", "RUNNING")
            or t.state.name == "FAIL" and "cell" in t.user_attrs and t.number not in retried
        ]  # fmt: skip

    def over(self) -> bool:
        """Whether there are enough trials, and none is running."""
        counted = self.counted()
        enough = len(counted) >= self.spec.trials or len(self.trials) >= MOST_ASKED * self.spec.trials
        return enough and all(t.state.name != "RUNNING" for t in counted)

    def busy(self) -> bool:
        """Whether a trial of this folder is running."""
        return any(t.state.name == "RUNNING" and t.user_attrs.get("place") == self.here for t in self.trials)

    def elsewhere(self, ident: str) -> dict | None:
        """The attributes of a finished trial with this cell, here or on another machine."""
        same = (t for t in self.trials if t.state.name == "COMPLETE" and t.user_attrs.get("cell") == ident)
        return next((t.user_attrs for t in same), None)

    @contextlib.contextmanager
    def next(self) -> Iterator[tuple[object, SweepCell] | None]:
        """A trial and its cell, locked while the block runs: an abandoned one, else a new one, else None."""
        with contextlib.ExitStack() as stack:
            with self.place.lock(self.place.folder / "study.lock", wait=True):
                claimed = self._abandoned(stack) or self._new(stack)
            yield claimed

    def _abandoned(self, stack: contextlib.ExitStack) -> tuple | None:
        """A trial that its worker left, with its cell, or None.

        While `study.lock` is held no worker is between asking for a trial and claiming its cell, so the worker of a
        free cell is gone.
        """
        for trial in self.trials:
            place = trial.user_attrs.get("place", self.here if self.here == "shared" else None)
            if trial.state.name == "RUNNING" and place == self.here:
                ident = trial.user_attrs.get("cell")
                if ident is not None and not _free(self.place, ident):
                    continue
                claimed = self._claimed(self.optuna.trial.Trial(self.study, trial._trial_id), stack)
                if claimed is not None:
                    return claimed
        return None

    def _new(self, stack: contextlib.ExitStack) -> tuple | None:
        while len(self.counted()) < self.spec.trials and len(self.trials) < MOST_ASKED * self.spec.trials:
            self.study.sampler = self._sampler(len(self.trials))
            trial = self.study.ask()
            trial.set_user_attr("place", self.here)
            claimed = self._claimed(trial, stack)
            if claimed is not None:
                return claimed
        return None

    def _claimed(self, trial, stack: contextlib.ExitStack) -> tuple | None:
        """The trial with its cell, if that can be locked; excluded and superfluous trials are marked as failed."""
        assigned = suggest(self.spec.space, trial)
        before = sum(other.number < trial.number for other in self.counted())
        if before >= self.spec.trials or is_excluded({"model": self.spec.models[0][0], **assigned}, self.spec.exclude):
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            return None
        cell = cell_of(self.spec, assigned)
        trial.set_user_attr("cell", cell.id)
        trial.set_user_attr("params", cell.params)
        if stack.enter_context(self.place.claim(cell.id)):
            return trial, cell
        return None  # an equal trial is running; when it is done, this one takes its result

    def tell(self, trial, attributes: dict | None) -> None:
        """Finishes a trial. attributes: `raw` (per aim), `excess`, and what sweep.json needs; None: it failed."""
        values = None if attributes is None else attributes["raw"]
        if values is None or None in values:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            return
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        if hasattr(trial, "set_constraint"):  # Optuna 5; in earlier versions the sampler calls `_excesses`
            for i, excess in enumerate(attributes["excess"]):
                trial.set_constraint(f"budget {i}", excess)
        self.study.tell(trial, values)

    def importance(self) -> dict:
        """By aim the importance of each parameter (PED-ANOVA, arXiv 2304.10255); empty if there are too few trials."""
        by_aim, fixed = {}, [p.name for p in self.spec.space if p.values is not None and len(p.values) == 1]
        for i, objective in enumerate(self.spec.aims):
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                evaluator = self.optuna.importance.PedAnovaImportanceEvaluator()
                target = None if len(self.spec.aims) == 1 else lambda t, i=i: t.values[i]
                shares = self.optuna.importance.get_param_importances(self.study, evaluator=evaluator, target=target)
                by_aim[objective.name] = {name: share for name, share in sorted(shares.items()) if name not in fixed}
        return by_aim


def _excesses(trial) -> tuple:
    return tuple(trial.user_attrs.get("excess", (0.0,)))


def _free(place: Place, ident: str) -> bool:
    with place.claim(ident) as free:
        return free


def _name_of(place: Place) -> str:
    """The unique name of this folder among those that share a study, created once."""
    file = place.folder / "place"
    with place.lock(place.folder / "study.lock", wait=True):
        if not file.is_file():
            write_text(file, uuid.uuid4().hex[:12] + "\n")
        return file.read_text(encoding="utf-8").strip()


def _digest(spec: Spec) -> str:
    """A digest of what the trials of a study have in common."""
    every = cell_of(spec, {"strategy": "none"}).params
    text = json.dumps([repr(spec.space), repr(spec.exclude), [o.record() for o in spec.objectives], every])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _mend(path: Path) -> None:
    """Removes an incomplete last line."""
    data = path.read_bytes() if path.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        with path.open("r+b") as file:
            file.truncate(len(whole))


class _Flock:
    """The journal's lock; unlike Optuna's own locks it is released at once when its process is killed."""

    def __init__(self, path: Path):
        self.path, self._file = path.with_name("journal.lock"), None

    def acquire(self) -> bool:
        """Waits for the lock."""
        file = self.path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
        self._file = file
        return True

    def release(self) -> None:
        """Releases the lock."""
        self._file.close()
