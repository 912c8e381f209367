"""Texts that nobody should write: seeded mutations of good YAML, and snippets that parsers stumble over."""

import random
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
KINDS = {"strategies": "strategies", "eval": "suites", "sweeps": "sweeps", "papers": "cards"}
BOMB = "[" + ", ".join(["&b0 [x, x, x, x, x, x, x, x]"] + [f"&b{i} [{f'*b{i - 1}, ' * 8}]" for i in range(1, 10)]) + "]"

# Values in the place of any other: wrong types, numbers that are none, tags, anchors, characters, sizes.
VALUES = (
    "null", "~", "true", "no", "0", "-1", "1", "3", "2.5", "-0.0", "1e999", "1e309", ".nan", "-.inf", "5.0e-324",
    "9" * 30, "9" * 5000, "0x" + "f" * 500, "1:2:3", "1_0", "0o7", "\N{ARABIC-INDIC DIGIT THREE}", "''", "' '",
    "x" * 5000, "[]", "{}", "[[]]", "[1, 1]", "[null]", "[.nan, .nan]", "{a: 1}", "{1: 2}", "{null: 1}", "{[1]: 2}",
    "{? {a: 1} : 2}", "{a: 1, a: 2}", "{<<: {a: 1}}", "{<<: 3}", "=", "2020-01-01", "2020-01-01T00:00:00Z",
    "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!binary aGk=", "!!binary '?'", "!!int x", "!!int ''",
    "!!bool x", "!!float x", "!!timestamp x", "!!null x", "!!python/object/apply:os.system [x]",
    "!!python/name:os.system ''", "!x y", "!<tag:x> y", "&a [*a]", "&a {b: *a}", "*nothing", "&a 1", BOMB, "[" * 3000,
    "{" * 3000, "- " * 60, '"\\0"', '"\\e[31m"', '"\\ud800"', '"\\U0011ffff"', '"\\x"', "'", '"', "|", ">-", "%",
    "@x", "`x", "# x", "--- x", "...", "[bold red]", "</script>", "../../etc/passwd", "a,b", "a=b", "a+b", "+", ",",
    "none,none", "each", "search", "random", "hiprune+", "demo,,", "hiprune+hiprune", "fastv", "\N{BYTE ORDER MARK}x",
    "{low: 0, high: 1}", "{low: .nan, high: 1, step: 1}", "{low: 0, high: 1, step: 1.0e-300}",
    "{low: 0, high: 9000000000000000000, int: true}", "{values: [1], when: {alpha: 1}}",
    "{low: -1.0e308, high: 1.0e308, step: 0.1}", "{low: 0.0, high: 1.0, step: 0.000001}",
)  # fmt: skip
WHOLE = (
    b"", b"\xff\xfe", b"\0", b"\xef\xbb\xbfkeep: 0.5", "keep: 0.5".encode("utf-16"), b"\xc3", b"\t", b"a:\n\tb",
    b"---\n---\n", b"[" * 100_000, b"{" * 100_000, b"- " * 50_000, b"? " * 50_000, b"a: " * 1000, b"x" * 1_000_000,
    b"&a " * 1000, b"%YAML 9\n", b"*a", b"&a [*a]", b"&a {*a : 1}", BOMB.encode(), b"keep: " + BOMB.encode(),
    b"a: 1\r\nb: 2", b"\x1b[31m: 1", b"!!set {a}",
)  # fmt: skip


def shipped(kind: str) -> list[str]:
    """The texts of the shipped files of a kind, by name."""
    return [file.read_text(encoding="utf-8") for file in sorted((CONFIGS / kind).glob("*.yaml"))]


def mutated(text: str, draw: random.Random) -> bytes:
    """The text with one to three things wrong."""
    data = text.encode()
    for _ in range(draw.choice((1, 1, 2, 3))):
        data = draw.choice((_flip, _cut, _value, _value, _value, _lines, _key, _indent))(data, draw)
    return data


def _flip(data: bytes, draw: random.Random) -> bytes:
    """Some bytes replaced."""
    found = bytearray(data or b"x")
    for _ in range(draw.randint(1, 4)):
        found[draw.randrange(len(found))] = draw.choice((draw.randrange(256), *b"\0\t\n:-[]{}&*!|>'\"%@#,?"))
    return bytes(found)


def _cut(data: bytes, draw: random.Random) -> bytes:
    """The rest, or a part, missing."""
    start = draw.randrange(len(data) + 1)
    return data[:start] + draw.choice((b"", data[start + draw.randint(1, 40) :]))


def _value(data: bytes, draw: random.Random) -> bytes:
    """The value of a line, or an entry of a flow, replaced by a hostile one."""
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    before, sign, _ = lines[number].partition(b":" if b":" in lines[number] else b"-")
    lines[number] = before + sign + b" " + draw.choice(VALUES).encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _lines(data: bytes, draw: random.Random) -> bytes:
    """A line dropped, doubled, or moved."""
    lines = data.split(b"\n")
    line = lines.pop(draw.randrange(len(lines)))
    for _ in range(draw.choice((0, 1, 2))):
        lines.insert(draw.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def _key(data: bytes, draw: random.Random) -> bytes:
    """A line with another key."""
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    before, sign, after = lines[number].partition(b":")
    spaces = before[: len(before) - len(before.lstrip(b" -"))]
    keys = (
        "<<",
        "3",
        "null",
        "true",
        "=",
        "keep",
        "stages",
        "? [a]",
        "é",
        "x" * 3000,
        "*a",
        "&a b",
        "!!int 1",
        "''",
        ".nan",
    )
    lines[number] = spaces + draw.choice(keys).encode() + (sign or b":") + after
    return b"\n".join(lines)


def _indent(data: bytes, draw: random.Random) -> bytes:
    """A line moved to the right or left."""
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    lines[number] = draw.choice(
        (b" " + lines[number], b"  " + lines[number], lines[number].lstrip(), b"\t" + lines[number])
    )
    return b"\n".join(lines)
