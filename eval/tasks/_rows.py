"""Strict reading of the cells of rows: texts, names, options and answers of the right type."""

import ast
import json
import math
from collections.abc import Mapping

from vtc.core.errors import ConfigError, shown
from vtc.eval.data.docs import ROW
from vtc.eval.tasks._prompts import LETTERS


def known(value: object) -> object | None:
    """The value, or None for what tables have in empty cells: None, not-a-number, "", "nan"."""
    if value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
        return None
    return value


def text_of(doc: Mapping, column: str) -> str:
    """The text in a column; raises KeyError if the column is missing, ConfigError for anything but a text."""
    value = doc[column]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{column}={shown(value)}; possible: a text that is not empty")
    return value


def hint_of(doc: Mapping) -> str | None:
    """The text of the column `hint`, None if it is empty; raises ConfigError for anything but a text."""
    return None if known(doc.get("hint")) is None else text_of(doc, "hint")


def plain(value: object, where: str) -> str:
    """A text or a finite number as text, 3.0 as 3; raises ConfigError for anything else, including blanks."""
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str) and value.strip() or type(value) is int:
        return str(value)
    raise ConfigError(f"{where}={shown(value)}; possible: a text or a number")


def name_of(doc: Mapping, *columns: str) -> str | None:
    """The first non-empty of the columns as text, such as the name of a group or category; None if all are empty.

    Raises ConfigError for anything but text and numbers.
    """
    column = next((column for column in columns if known(doc.get(column)) is not None), None)
    return None if column is None else plain(doc[column], column)


def first_id(doc: Mapping, *columns: str) -> str:
    """The first non-empty of the columns as text, else the row's number in the source."""
    name = name_of(doc, *columns)
    return str(doc[ROW]) if name is None else name


def listed(value: object, where: str) -> list:
    """A list, possibly written as text; empty for an empty cell. Raises ConfigError for anything else."""
    items = list_or_mapping(value, where)
    if isinstance(items, Mapping):
        raise ConfigError(f"{where}={shown(value)} is no list; possible: a list of texts")
    return items


def list_or_mapping(value: object, where: str) -> list | Mapping:
    """A list or a mapping, possibly written as text, in JSON or Python syntax; empty for an empty cell.

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
    """The non-empty options by letter, from a list, a mapping from letters, or one of these written as text.

    Raises ConfigError for fewer than two options, for more than there are letters, and for anything but text and
    numbers.
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
    """The letter of the right option, from a letter or an index from 0, possibly written as text.

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


def letter_of_text(answer: object, options: Mapping[str, str], where: str = "answer") -> str:
    """The letter of the option whose text is the answer; raises ConfigError if that is none, or several are equal."""
    text = plain(answer, where).strip()
    letters = [letter for letter, option in options.items() if option.strip() == text]
    if len(letters) != 1:
        raise ConfigError(
            f"{where}={shown(answer)} is {len(letters)} of the options; possible: one of {shown(options)}"
        )
    return letters[0]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def yes_or_no(value: object, where: str) -> str:
    """yes or no, from any case and with or without a final full stop; raises ConfigError for anything else."""
    answer = value.strip().rstrip(".").lower() if isinstance(value, str) else None
    if answer not in ("yes", "no"):
        raise ConfigError(f"the right answer of {where} is {shown(value)}; possible: yes, no")
    return answer
