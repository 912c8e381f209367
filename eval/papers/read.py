"""Reads paper cards from YAML: each value is checked, and each error is one line that names its place in the card."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from importlib.resources import files
from os.path import isfile
from pathlib import Path

import vtc
from vtc.core.errors import ConfigError, shown
from vtc.core.registry import names_in, unknown
from vtc.eval.papers.card import FULL, Model, PaperCard, PublishedRow, Score, Setting
from vtc.eval.tasks import DIALECTS, TASKS
from vtc.io.plain_yaml import load
from vtc.io.shapes import below, flag, mapping, or_none, wrong


def cards() -> dict[str, object]:
    """The shipped cards: their files by name, sorted."""
    folder = files("vtc.configs") / "papers"
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".yaml"))
    return {name.removesuffix(".yaml"): folder / name for name in names}


def load_card(name: str | Path) -> PaperCard:
    """A card by name or from a YAML file; raises ConfigError in one line for anything that does not follow
    `vtc.eval.papers.card`."""
    shipped = cards()
    file = shipped.get(str(name), Path(name))
    if str(name) not in shipped and (file.suffix not in (".yaml", ".yml") or not isfile(file)):
        raise ConfigError(unknown("paper card", str(name), [*shipped, "FILE.yaml"]))
    raw = load(file, f"paper card {shown(str(name))}", "a file that can be read")
    stem = Path(file.name).stem
    return _built(PaperCard, raw, f"paper card {stem!r}:", CARD, name=stem)


def _built(kind: type, raw: object, where: str, checks: Mapping[str, Callable], **given):
    """An instance of a dataclass from a mapping, each value checked; raises ConfigError naming the place."""
    data = mapping(raw, where, f"a mapping with {', '.join(checks)}")
    for key in data:
        if key not in checks:
            raise ConfigError(f"{where} {unknown('key', key, list(checks))}")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name not in given]
    for key in needed:
        if key not in data:
            raise ConfigError(f"{where} {shown(key)} is missing; needed: {', '.join(needed)}")
    return kind(**given, **{key: checks[key](value, below(where, key)) for key, value in data.items()})


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise wrong(where, value, "text")
    return " ".join(value.split())


def _number(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise wrong(where, value, "a number as printed, or null where the paper prints none")
    return value


def _whole(value: object, where: str) -> int:
    if type(value) is not int or value < 1:
        raise wrong(where, value, "a whole number >= 1")
    return value


def _one_of(kind: str, known: Callable[[], list[str]]) -> Callable:
    def check(value: object, where: str) -> str | None:
        if value is not None and value not in known():
            raise ConfigError(f"{where}: {unknown(kind, value, [*known(), 'null'])}")
        return value

    return check


def _list(check: Callable) -> Callable:
    def checked(value: object, where: str) -> tuple:
        if not isinstance(value, list) or not value:
            raise wrong(where, value, "a list that is not empty")
        return tuple(check(item, f"{where}[{i}]") for i, item in enumerate(value))

    return checked


def _by_name(check: Callable, tasks: bool = False) -> Callable:
    """A check of a mapping's values; tasks: its keys must be tasks."""

    def checked(value: object, where: str) -> dict:
        for key in mapping(value, where, "a mapping of tasks" if tasks else "a mapping"):
            if tasks and key not in TASKS.names():
                raise ConfigError(f"{where}: {unknown('task', key, TASKS.names())}")
        return {key: check(item, below(where, key)) for key, item in value.items()}

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
    raise wrong(where, value, possible)


def _knob(value: object, where: str) -> object:
    if not isinstance(value, str | int | float | bool):
        raise wrong(where, value, "a number or a word")
    return value


def _score(value: object, where: str) -> Score | None:
    if isinstance(value, Mapping):
        return _built(Score, value, where, {"value": _number, "figure": _text, "scale": _number})
    number = _number(value, where)
    return None if number is None else Score(number)


def _row(value: object, where: str) -> PublishedRow:
    row = _built(PublishedRow, value, where, ROW)
    if row.strategy in (FULL, None) and row.set is not None or row.strategy == FULL and row.keep is not None:
        raise ConfigError(f"{where}: a budget for strategy {row.strategy!r} means nothing here; possible: none")
    if row.set and "keep" in row.set and (len(row.set) > 1 or _keep(row.set["keep"], f"{where}.set.keep") is None):
        raise wrong(f"{where}.set", row.set, "keep alone, or settings without it")
    return row


def _model(value: object, where: str) -> Model:
    model = _built(Model, value, where, MODEL)
    if [row.strategy for row in model.rows].count(FULL) != 1 or model.rows[0].strategy != FULL:
        raise ConfigError(f"{where}.rows must begin with the full model, the one row of strategy {FULL!r}")
    return model


def _url(value: object, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https://\S+", value):
        raise wrong(where, value, "an address such as https://arxiv.org/abs/2508.00553")
    return value


_dialect = _one_of("dialect", lambda: list(DIALECTS))
ROW = {
    "strategy": _strategy, "label": _text, "scores": _by_name(_score, tasks=True), "keep": _keep,
    "set": or_none(_by_name(_knob)), "others": _by_name(_number), "average": _number, "remark": _text,
}  # fmt: skip
SETTING = {"pad_square": flag, "system": _text, "model_args": _by_name(_knob)}
MODEL = {
    "checkpoint": _text, "family": _one_of("family", lambda: names_in("vtc.patches")), "dialect": _dialect,
    "rows": _list(_row), "used": _text, "dialects": _by_name(_dialect, tasks=True), "tokens": _whole,
    "settings": lambda value, where: _built(Setting, value, where, SETTING), "splits": _by_name(_text, tasks=True),
    "note": _text, "average_is": _text, "average_over": _list(_text),
}  # fmt: skip
CARD = {
    "title": _text, "url": _url, "year": _whole, "source": _text, "models": _list(_model), "measured": _text,
    "differs": _list(_text),
}  # fmt: skip
