"""What rows of several benchmarks hold, read strictly: texts, names, options and answers of the right kind."""

import ast
import json
import math
from collections.abc import Mapping

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.docs import ROW
from vtc.eval.tasks._prompts import LETTERS


def known(value: object) -> object | None:
    """The value, or None for what tables write where there is none: None, not-a-number, "", "nan"."""
    if value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
        return None
    return value


def text_of(doc: Mapping, column: str) -> str:
    """The text that a column holds; raises KeyError without the column, ConfigError for anything but a text."""
    value = doc[column]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{column}={shown(value)}; possible: a text that is not empty")
    return value


def hint_of(doc: Mapping) -> str | None:
    """The text of the column `hint`, None where there is none; raises ConfigError for anything but a text."""
    return None if known(doc.get("hint")) is None else text_of(doc, "hint")


def plain(value: object, where: str) -> str:
    """A text or a finite number as text, 3.0 as 3; raises ConfigError for anything else, and for a blank."""
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str) and value.strip() or type(value) is int:
        return str(value)
    raise ConfigError(f"{where}={shown(value)}; possible: a text or a number")


def name_of(doc: Mapping, *columns: str) -> str | None:
    """The first of the columns that holds something, as a name: of a group, a kind, an axis. None if none does.

    Raises ConfigError for what is neither text nor number.
    """
    column = next((column for column in columns if known(doc.get(column)) is not None), None)
    return None if column is None else plain(doc[column], column)


def first_id(doc: Mapping, *columns: str) -> str:
    """The first of the columns that holds something, else the row's number in the source."""
    name = name_of(doc, *columns)
    return str(doc[ROW]) if name is None else name


def listed(value: object, where: str) -> list:
    """A list, also one that is written as text; empty for what says nothing. Raises ConfigError for anything else."""
    items = list_or_mapping(value, where)
    if isinstance(items, Mapping):
        raise ConfigError(f"{where}={shown(value)} is no list; possible: a list of texts")
    return items


def list_or_mapping(value: object, where: str) -> list | Mapping:
    """A list or a mapping, also one that is written as text, in JSON or in Python; empty for what says nothing.

    Raises ConfigError for a text that is neither, and for any other value.
    """
    parsed = known(value)
    if isinstance(parsed, str):
        parsed = _read(parsed)
    if parsed is None and known(value) is None:
        return []
    if not isinstance(parsed, list | tuple | Mapping):
        raise ConfigError(f"{where}={shown(value)} is no list; possible: a list of texts, also written as text")
    return parsed if isinstance(parsed, Mapping) else list(parsed)


def _read(text: str) -> object:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return None


def options_of(value: object, where: str = "options") -> dict[str, str]:
    """The options that exist, by letter, from a list, a mapping from letters, or a text that is one.

    Raises ConfigError for fewer than two options, for more than there are letters, and for what is no text or number.
    """
    value = list_or_mapping(value, where)
    pairs = list(value.items() if isinstance(value, Mapping) else zip(LETTERS, value))
    letters = [str(letter).strip().upper() for letter, _ in pairs]
    if len(value) > len(LETTERS) or not set(letters) <= set(LETTERS) or len(set(letters)) < len(letters):
        raise ConfigError(f"{where}={shown(value)}; possible: at most 26, in a list or by capital letters")
    options = {letter: _option(text, where) for letter, (_, text) in zip(letters, pairs) if known(text) is not None}
    if len(options) < 2:
        raise ConfigError(f"{where}={shown(value)} holds {len(options)} options; possible: two or more")
    return dict(sorted(options.items()))


def _option(value: object, where: str) -> str:
    return str(value) if isinstance(value, bool) else plain(value, where)


def letter_of(answer: object, options: Mapping[str, str], where: str = "answer") -> str:
    """The letter of the right option, from a letter or a place (0 the first), which may be written as text.

    Raises ConfigError if it is none of the options, or if another option has the same text.
    """
    place = known(answer)
    if isinstance(place, str):
        letter = place.strip().rstrip(".").upper()
        place = letter if letter in LETTERS else _number(letter)
    if isinstance(place, float) and place.is_integer():
        place = int(place)
    if type(place) is int:
        place = LETTERS[place] if 0 <= place < len(LETTERS) else None
    if not isinstance(place, str) or place not in options:
        raise ConfigError(f"{where}={shown(answer)} is no option of the row; possible: {', '.join(options)}")
    same = [letter for letter, text in options.items() if text.strip() == options[place].strip()]
    if len(same) > 1:
        raise ConfigError(f"{where}={shown(answer)}: options {' and '.join(same)} are equal; possible: different ones")
    return place


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def yes_or_no(value: object, where: str) -> str:
    """yes or no, in any case and with a final full stop; raises ConfigError for anything else."""
    answer = value.strip().rstrip(".").lower() if isinstance(value, str) else None
    if answer not in ("yes", "no"):
        raise ConfigError(f"the right answer of {where} is {shown(value)}; possible: yes, no")
    return answer
