"""Rows of data with something wrong, through `vtc eval`: an answer that is scored, an error row, or one short line."""

import base64
import copy
import json
import math
import os
import random
import shutil

import pytest

from tests.helpers_stub import Stub
from tests.helpers_tasks import FIXTURES, json_rows
from vtc.cli import main
from vtc.eval import runner
from vtc.eval.running.eval_settings import GENERATED
from vtc.eval.tasks import DIALECTS, TASKS

NAMES = [name for name in TASKS if name not in GENERATED]
FILES_PER_TASK = int(os.environ.get("VTC_MUTATED_FILES", "12"))  # more: a longer search
FIRST_SEED = int(os.environ.get("VTC_MUTATED_SEED", "0"))
LONGEST = 500  # characters of a line
PNG = (FIXTURES / "pictures" / "a.png").read_bytes()
VALUES = (
    None, "", " ", math.nan, math.inf, -1, 0, 0.0, 1, 1.0, 1.5, 5, True, False, "1", "0.0", "A", "Z", "b.", "yes", "No",
    10**30, "9" * 5000, "x" * 20000, "\ud800 cat", "cat\udfff", "²", "\0", "a\nb", "nan",
    [], [None], [""], [[1]], ["a"], ["a", "a"], ["a", "b"], ["x"] * 30, [{"answer": "red"}], [1, 2.0, True],
    {}, {"a": 1}, {"A": "x", "B": "y"}, {"answer": ["a"]}, {"bytes": None, "path": None}, {"bytes": "AAAA"},
    "['a', 'b']", "['a' 'b']", '["a", "b"]', "[", "[" * 3000, "{'A': 'x', 'B': 'y'}", "[[1], {}]", "a, b",
    "nosuch.png", "/", "..", "http://example.org/a.png", "data:image/png;base64,AAAA", "pictures/a.png",
    base64.b64encode(PNG).decode(), base64.b64encode(PNG[:60]).decode(), "<image 1>", "<image 9>", "<picture>",
)  # fmt: skip
NO_ROWS = (None, 5, "row", [], [1, 2], True)


@pytest.fixture
def stub(monkeypatch):
    """A model that answers at once, and no plots."""
    found = Stub()
    monkeypatch.setattr(runner, "load", lambda *_: found)
    monkeypatch.setattr(runner, "draw", lambda summary, path: path)
    return found


def fixture_rows(name: str) -> list[dict]:
    """The invented rows of a benchmark."""
    return json_rows(FIXTURES / f"{name.removesuffix('_ocr')}.jsonl")


def mutate(rows: list, draw: random.Random) -> int | None:
    """Spoils one row in place and returns its number, or a column of all rows and returns None."""
    number = draw.randrange(len(rows))
    row, kind = rows[number], draw.randrange(12)
    column, other = draw.choice(sorted(row)), draw.choice(sorted(row))
    if kind == 0:
        rows[number] = copy.deepcopy(draw.choice(NO_ROWS))
    elif kind == 1:
        for one in rows:
            one.pop(column, None)
        return None
    elif kind == 2:
        del row[column]
    elif kind == 3:
        row[column], row[other] = row[other], row[column]
    elif kind == 4:
        row[column] = [row[column], row[column]]
    elif kind == 5:
        row[column] = str(row[column])
    else:
        row[column] = copy.deepcopy(draw.choice(VALUES))
        if kind > 9 and other != column:
            row[other] = copy.deepcopy(draw.choice(VALUES))
    return number


def evaluated(name: str, dialect: str, rows: list, folder, capsys) -> tuple[int, dict[int, dict], str]:
    """Exit code, the log's rows in the order of the data, and what was printed."""
    data, output = folder / "rows.jsonl", folder / "out"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    options = {"model": "demo", "strategy": "none", "tasks": name, "dataset-path": data, "output": output}
    words = [word for key, value in {**options, "dialect": dialect}.items() for word in (f"--{key}", str(value))]
    with pytest.raises(SystemExit) as stopped:
        main(["eval", *words])
    out, err = capsys.readouterr()
    out.encode(), err.encode()
    log = output / "samples" / f"none.{name}.jsonl"
    found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[1:]] if log.exists() else []
    return stopped.value.code, dict(enumerate(found)), err if stopped.value.code == 2 else out


def check(code: int, rows: dict[int, dict], said: str) -> None:
    """Nothing but scores, error rows, or one line."""
    if code == 2:
        assert said.startswith("vtc: error: ")
        assert (said.count("\n"), not rows) == (1, True)
        assert len(said) <= LONGEST, said
        return
    errors = [row["error"] for row in rows.values() if row["error"] is not None]
    assert code == bool(errors)
    assert all(len(error) <= LONGEST and "\n" not in error for error in errors), errors
    for row in rows.values():
        assert all(isinstance(row[name], str) for name in ("id", "group", "category"))
        assert row["error"] or 0 <= row["score"]["correct"] <= 1


@pytest.mark.parametrize("share", [6, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", NAMES)
def test_mutated_rows(name, share, stub, tmp_path, capsys):
    """One spoilt row harms no other, nothing is asked without its picture, and every text can be printed."""
    for folder in ("pictures", "videos"):
        (tmp_path / folder).symlink_to(FIXTURES / folder)
    whole = {dialect: evaluated(name, dialect, fixture_rows(name), tmp_path, capsys) for dialect in DIALECTS}
    assert all(code == 0 for code, _, _ in whole.values())
    for i in range(FILES_PER_TASK // share):
        seed = f"{name}/{FIRST_SEED + i}"
        draw, rows, dialect = random.Random(seed), fixture_rows(name), list(DIALECTS)[i % len(DIALECTS)]
        number = mutate(rows, draw)
        stub.seen.clear()
        code, found, said = evaluated(name, dialect, rows, tmp_path, capsys)
        try:
            check(code, found, said)
            alone = name in ("scienceqa_img", "hallusion")  # whose rows may say that they have no picture
            assert all((modes or alone) and set(modes) <= {"RGB"} for _, modes in stub.seen)
            for place, row in whole[dialect][1].items() if number is not None and len(found) == len(rows) else ():
                assert place == number or [found[place][key] for key in ("prompt", "score")] == [
                    row[key] for key in ("prompt", "score")
                ]
        except AssertionError as error:
            error.add_note(f"seed {seed}: {ascii(rows)[:2000]}")
            raise
