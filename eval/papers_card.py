"""Paper cards: what a paper prints, as data that runs can be held against. Shipped ones are `configs/papers/*.yaml`.

A card:

    title: ...
    url: https://arxiv.org/abs/...
    year: 2025
    source: where the numbers were read, and what is doubtful about them
    models:
      - checkpoint: llava-hf/llava-1.5-7b-hf   # what vtc loads
        used: liuhaotian/llava-v1.5-7b         # what the paper used, where that is something else
        family: llava                          # null: vtc cannot prune it
        dialect: llava                         # null: the paper does not say
        dialects: {gqa: lmms}                  # tasks in another one
        tokens: 576                            # visual tokens of an image without pruning
        settings: {pad_square: true, system: TEXT, model_args: {dtype: float16}}
        splits: {vqav2: test-dev}              # where the paper's split is not the task's own
        note: TEXT
        average_is: TEXT                       # where it is not the mean of the scores in % of the full model's
        average_over: [gqa, mme]               # where it is that mean, but over these alone
        rows:
          - {strategy: none, label: Vanilla, scores: {gqa: 61.9, mme: {figure: total, value: 1862}}, average: 100}
          - {strategy: hiprune, label: HiPrune, keep: 192, scores: {gqa: 59.2, mme: null}, average: 99.3}
    measured: what has been measured with vtc so far
    differs: [a reason why our number can differ, ...]

The first row of a model is the full one. A row's `strategy` is null where vtc has not got the method, `keep` is the
paper's budget (tokens, or a fraction; null where it gives none), `set` the settings that ask vtc for it where `--keep`
does not ({} is the strategy's published schedule), `others` scores of benchmarks that vtc has not got, `remark` a word
about the row. Numbers are as printed: points for MME, else per cent; a mapping says so where the figure is not the
task's primary one, or the scale not the task's own. null is a number that the paper does not print.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from importlib.resources import files
from pathlib import Path

import yaml

import vtc
from vtc.errors import ConfigError
from vtc.eval.tasks import DIALECTS, TASKS
from vtc.registry import module_names, unknown

FULL = "none"  # the strategy of the full model's row


@dataclass(frozen=True)
class Score:
    """A published number. figure: None for the task's primary one; scale: None for the task's own."""

    value: float
    figure: str | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a published table; see the module. set: None where `keep` asks for the same."""

    strategy: str | None
    label: str
    scores: Mapping[str, Score | None]
    keep: int | float | None = None
    set: Mapping[str, object] | None = None
    others: Mapping[str, float | None] | None = None
    average: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Setting:
    """How the model was asked: pad_square, the system turn, and arguments of from_pretrained and of the processor."""

    pad_square: bool = False
    system: str | None = None
    model_args: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Model:
    """One checkpoint with its rows, the full model first; see the module."""

    checkpoint: str
    family: str | None
    dialect: str | None
    rows: tuple[Row, ...]
    used: str | None = None
    dialects: Mapping[str, str] | None = None
    tokens: int | None = None
    settings: Setting = Setting()
    splits: Mapping[str, str] | None = None
    note: str = ""
    average_is: str | None = None
    average_over: tuple[str, ...] = ()

    def dialect_of(self, task: str) -> str | None:
        """The dialect of one task, None where the paper does not say."""
        return (self.dialects or {}).get(task, self.dialect)


@dataclass(frozen=True)
class Card:
    """What one paper prints. name: that of the card's file."""

    name: str
    title: str
    url: str
    year: int
    source: str
    models: tuple[Model, ...]
    measured: str
    differs: tuple[str, ...]


def cards() -> dict[str, object]:
    """The shipped cards: their files by name, sorted."""
    folder = files("vtc.configs") / "papers"
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): folder / name for name in names}


def load_card(name: str | Path) -> Card:
    """A card by name or from a YAML file; raises ConfigError in one line for anything in it that is not as described
    in the module's docstring."""
    shipped = cards()
    file = shipped.get(str(name), Path(name))
    if str(name) not in shipped and (file.suffix not in (".yaml", ".yml") or not file.is_file()):
        raise ConfigError(unknown("paper card", str(name), [*shipped, "FILE.yaml"]))
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"paper card {str(name)!r} is not valid (safe) YAML: {error}") from None
    stem = Path(file.name).stem
    return _built(Card, raw, f"paper card {stem!r}:", CARD, name=stem)


def _built(kind: type, raw: object, where: str, checks: Mapping[str, Callable], **given):
    """An instance of a dataclass from a mapping, each value checked; raises ConfigError naming the place."""
    data = _mapping(raw, where, f"a mapping with {', '.join(checks)}")
    for key in data:
        if key not in checks:
            raise ConfigError(f"{where} {unknown('key', key, list(checks))}")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name not in given]
    for key in needed:
        if key not in data:
            raise ConfigError(f"{where} {key!r} is missing; needed: {', '.join(needed)}")
    return kind(**given, **{key: checks[key](value, _below(where, key)) for key, value in data.items()})


def _below(where: str, key: str) -> str:
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def _wrong(where: str, value: object, possible: str) -> ConfigError:
    return ConfigError(f"{where}={value!r}; possible: {possible}")


def _mapping(value: object, where: str, possible: str) -> Mapping:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _wrong(where, value, possible)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(where, value, "text")
    return " ".join(value.split())


def _number(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _wrong(where, value, "a number as printed, or null where the paper prints none")
    return value


def _whole(value: object, where: str) -> int:
    if type(value) is not int or value < 1:
        raise _wrong(where, value, "a whole number >= 1")
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, value, "true or false")
    return value


def _one_of(kind: str, known: Callable[[], list[str]]) -> Callable:
    def check(value: object, where: str) -> str | None:
        if value is not None and value not in known():
            raise ConfigError(f"{where}: {unknown(kind, value, [*known(), 'null'])}")
        return value

    return check


def _or_none(check: Callable) -> Callable:
    return lambda value, where: None if value is None else check(value, where)


def _list(check: Callable) -> Callable:
    def checked(value: object, where: str) -> tuple:
        if not isinstance(value, list) or not value:
            raise _wrong(where, value, "a list that is not empty")
        return tuple(check(item, f"{where}[{i}]") for i, item in enumerate(value))

    return checked


def _by_name(check: Callable, tasks: bool = False) -> Callable:
    """A mapping; tasks: whose keys are tasks."""

    def checked(value: object, where: str) -> dict:
        for key in _mapping(value, where, "a mapping of tasks" if tasks else "a mapping"):
            if tasks and key not in TASKS.names():
                raise ConfigError(f"{where}: {unknown('task', key, TASKS.names())}")
        return {key: check(item, _below(where, key)) for key, item in value.items()}

    return checked


def _strategy(value: object, where: str) -> str | None:
    known = [FULL, *vtc.strategies()]
    for part in [] if value is None else str(value).split("+"):
        if part not in known:
            raise ConfigError(f"{where}: {unknown('strategy', part, [*known, 'null'])}")
    return value


def _keep(value: object, where: str) -> int | float | None:
    possible = "tokens (192), a fraction in (0, 1) (0.334), or null"
    if value is None or type(value) is int and value >= 1 or isinstance(value, float) and 0 < value < 1:
        return value
    raise _wrong(where, value, possible)


def _knob(value: object, where: str) -> object:
    if not isinstance(value, str | int | float | bool):
        raise _wrong(where, value, "a number or a word")
    return value


def _score(value: object, where: str) -> Score | None:
    if isinstance(value, Mapping):
        return _built(Score, value, where, {"value": _number, "figure": _text, "scale": _number})
    number = _number(value, where)
    return None if number is None else Score(number)


def _row(value: object, where: str) -> Row:
    row = _built(Row, value, where, ROW)
    if row.strategy in (FULL, None) and row.set is not None or row.strategy == FULL and row.keep is not None:
        raise ConfigError(f"{where}: a budget for strategy {row.strategy!r} means nothing here; possible: none")
    return row


def _model(value: object, where: str) -> Model:
    model = _built(Model, value, where, MODEL)
    if [row.strategy for row in model.rows].count(FULL) != 1 or model.rows[0].strategy != FULL:
        raise ConfigError(f"{where}.rows must begin with the full model, the one row of strategy {FULL!r}")
    return model


def _url(value: object, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https://\S+", value):
        raise _wrong(where, value, "an address such as https://arxiv.org/abs/2508.00553")
    return value


_dialect = _one_of("dialect", lambda: list(DIALECTS))
ROW = {
    "strategy": _strategy, "label": _text, "scores": _by_name(_score, tasks=True), "keep": _keep,
    "set": _or_none(_by_name(_knob)), "others": _by_name(_number), "average": _number, "remark": _text,
}  # fmt: skip
SETTING = {"pad_square": _flag, "system": _text, "model_args": _by_name(_knob)}
MODEL = {
    "checkpoint": _text, "family": _one_of("family", lambda: module_names("vtc.patches")), "dialect": _dialect,
    "rows": _list(_row), "used": _text, "dialects": _by_name(_dialect, tasks=True), "tokens": _whole,
    "settings": lambda value, where: _built(Setting, value, where, SETTING), "splits": _by_name(_text, tasks=True),
    "note": _text, "average_is": _text, "average_over": _list(_text),
}  # fmt: skip
CARD = {
    "title": _text, "url": _url, "year": _whole, "source": _text, "models": _list(_model), "measured": _text,
    "differs": _list(_text),
}  # fmt: skip
