"""Files as a hard life leaves them: seeded changes of bytes, and of what a JSON text says."""

import copy
import json
import random

NASTY = "\x1b[31m<script>alert(1)</script>[/b]\u202e\x9b2J`|*_"
VALUES = (
    None, True, -1, 0, 1, 2.5, -0.5, 10**25, 1e308, 1e-320, 10**400, float("nan"), float("inf"), "", "x", "0.25", NASTY,
    f"=1+1{NASTY}", "\ud800", "\0", "../../x", "y" * 5000, [], {}, [[]], [None], [1, 2], {"a": 1},
)  # fmt: skip


def deep(levels: int) -> list:
    """Lists in lists."""
    found: list = []
    for _ in range(levels):
        found = [found]
    return found


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """Cut, emptied, with bytes flipped, lost, doubled or put in."""
    place, size = draw.randrange(len(data) + 1), draw.choice((1, 1, 2, 7, 60))
    kind = draw.randrange(9)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + data[place + size :]
    if kind == 2:
        return data[:place] + draw.randbytes(size) + data[place:]
    if kind == 3:
        return data[:place] + draw.randbytes(size) + data[place + size :]
    if kind == 4:
        return data[:place] + data[place : place + size] + data[place:]
    if kind == 5:
        return draw.choice((b"", b"\xef\xbb\xbf", b"\0" * 40, b"[" * 100_000, b"null", b'{"schema": 1}', b"\xff\xfe"))
    if kind == 6:
        return b"\xef\xbb\xbf" + data
    if kind == 7:
        return data + draw.choice((b"\n", b"{", b"\xe9\xa1", b"null\n", b'{"id": "\xe9\xa1'))
    return data[:place] + draw.choice((b"NaN", b"Infinity", b'"', b"}", b"]", b"\\ud800", b"9" * 5000)) + data[place:]


def places(data: object, path: tuple = ()) -> list[tuple]:
    """The way to everything in it."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def changed_data(data: object, draw: random.Random) -> object:
    """One thing in it replaced by something else, lost, renamed, wrapped, doubled, or nested very deeply."""
    *way, last = draw.choice(places(data)[1:])
    found = inner = copy.deepcopy(data)
    for key in way:
        inner = inner[key]
    kind = draw.randrange(10)
    if kind < 6:
        inner[last] = draw.choice(VALUES)
    elif kind == 6:
        del inner[last]
    elif kind == 7:
        inner[last] = draw.choice(([inner[last]], {"a": inner[last]}, str(inner[last])))
    elif kind == 8:
        inner[last] = deep(draw.choice((30, 90, 400)))
    elif isinstance(inner, dict):
        inner[draw.choice(("x", NASTY, "", "\ud800", "schema"))] = inner.pop(last)
    else:
        inner.append(inner[last])
    return found


def mutated(data: bytes, seed: int) -> bytes:
    """A file's bytes changed: as bytes, or as the JSON that they are, in lines or as a whole; now and then twice."""
    draw = random.Random(seed)
    for _ in range(draw.choice((1, 1, 1, 2))):
        try:
            lines = data.split(b"\n") if data.count(b"\n{") else [data]
            number = draw.randrange(len(lines))
            data_of_line = json.loads(lines[number])
            if draw.random() < 0.3 or not isinstance(data_of_line, dict | list) or not data_of_line:
                raise ValueError
            lines[number] = json.dumps(changed_data(data_of_line, draw), ensure_ascii=False).encode(
                "utf-8", "backslashreplace"
            )
            data = b"\n".join(lines)
        except (ValueError, RecursionError):
            data = changed_bytes(data, draw)
    return data
