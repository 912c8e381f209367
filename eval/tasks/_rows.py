"""What rows of several benchmarks share: how tables say nothing, and options in columns or in one field."""

from collections.abc import Mapping

from vtc.eval.tasks._prompts import LETTERS


def known(value: object) -> object | None:
    """The value, or None for what tables write where there is none: None, not-a-number, "", "nan"."""
    if value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
        return None
    return value


def options_of(doc: Mapping) -> dict[str, str]:
    """The options that exist, by letter: from `options` (a mapping or a list), else from the columns A to E."""
    held = doc.get("options")
    if isinstance(held, Mapping):
        pairs = held.items()
    elif isinstance(held, list | tuple):
        pairs = zip(LETTERS, held)
    else:
        pairs = ((letter, doc.get(letter)) for letter in "ABCDE")
    return {letter: str(text) for letter, text in sorted(pairs) if known(text) is not None}


def letter_of(answer: object) -> str:
    """The letter of an answer that is a letter or the index of an option."""
    text = str(answer).strip()
    return LETTERS[int(text)] if text.isdigit() else text.upper()
