"""Text that comes from data, escaped for a terminal, for Markdown, and for a cell of a CSV (HTML: `page`)."""

import re

# Control characters but line break and tab, line separators, marks that turn the direction of reading, half characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: object) -> str:
    r"""The text with everything that would control a terminal, or cannot be encoded, as JSON escapes: `\u001b`."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", str(text))


def markdown(text: object) -> str:
    """On one line, with nothing in it that Markdown or HTML would read as markup."""
    line = " ".join(visible(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + sign if sign in "\\`*_[]|#~$!" else sign for sign in line)


def cell(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would run as a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return "" if value is None else value
    return ("'" if value.startswith(_FORMULA) else "") + visible(value)
