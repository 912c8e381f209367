"""Files are put in place as a whole whoever writes beside, and what cannot be written is one line, nothing lost."""

import errno
import os
import resource
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers import refused
from vtc.core.errors import ConfigError
from vtc.eval.results.counts import nothing
from vtc.eval.results.samples import Lines, read_log
from vtc.io.files import read_json, replacing, write_json, write_text
from vtc.io.shapes import anything, list_of, number, record, text, whole

SHAPE = record({"runs": list_of(record({"n": whole(), "name": text}, {"share": number(0, 1)}))})


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def hammer(path: Path, number: int, times: int = 60) -> None:
    """Writes one file again and again."""
    for _ in range(times):
        write_json(path, {"writer": number, "filler": [number] * 500})


def test_many_writers_of_one_file(tmp_path):
    """Processes with threads write one file at a time: none fails, a reader always meets a whole one, nothing stays."""
    path, stop, met = tmp_path / "new" / "results.json", threading.Event(), []
    hammer(path, 0, 1)

    def look() -> None:
        while not stop.is_set():
            met.append(read_json(path, anything, ""))

    children = []
    for process in range(3):
        if (child := os.fork()) == 0:
            code = 1
            try:
                with ThreadPoolExecutor(2) as pool:
                    list(pool.map(hammer, [path] * 2, (2 * process, 2 * process + 1)))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    reader = threading.Thread(target=look)
    reader.start()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    stop.set()
    reader.join()
    assert met
    assert all(set(found["filler"]) == {found["writer"]} for found in met)
    assert names(path.parent) == ["results.json"]


def test_permissions_and_links(tmp_path):
    """A new file has the permissions that open() gives, an old one keeps its own, and a link stays a link."""
    (tmp_path / "plain").open("w").close()
    write_text(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    (tmp_path / "link").symlink_to("new")
    write_text(tmp_path / "link", "half \ud800")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert (tmp_path / "new").read_text() == "half \\ud800"


def test_a_block_that_raises_writes_nothing(tmp_path):
    """The old file stays, and nothing beside it."""
    write_text(tmp_path / "a", "old")

    def broken() -> None:
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("where", ["file/results.json", "folder"])
def test_no_place_to_write(tmp_path, where):
    """A file where a folder should be, and a folder where the file should be, are one line."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    refused(lambda: write_text(tmp_path / where, "x"), where, "cannot be written", kind=ConfigError)
    assert names(tmp_path) == ["file", "folder"]


def test_full_disk(tmp_path, monkeypatch):
    """One line, and the file that was there is still whole."""
    write_text(tmp_path / "a", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    refused(lambda: write_text(tmp_path / "a", "new"), "No space left on device", kind=ConfigError)
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def row(ident: str) -> dict:
    """An answered sample."""
    named = {"id": ident, "group": "\u984f", "category": "x", "reference": None, "text": "\u8272 \ud800", "error": None}
    return {**named, **nothing(), "text_in": None, "tokens_out": None}


def test_a_log_on_a_full_disk(tmp_path):
    """A row has room or it is not there: what was before is read again, and more rows fit when there is room."""
    log, path = Lines(tmp_path / "log.jsonl"), tmp_path / "log.jsonl"
    log.write(row("a"))
    before, size = resource.getrlimit(resource.RLIMIT_FSIZE), path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
    try:
        refused(lambda: log.write(row("b")), "log.jsonl", "File too large", kind=ConfigError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size == size
    log.write(row("c"))
    log.close()
    assert list(read_log(path)[1].values()) == [row("a"), row("c")]


def test_a_last_line_cut_anywhere_is_dropped(tmp_path):
    """Also inside a character; the lines before it stay."""
    path = tmp_path / "log.jsonl"
    log = Lines(path)
    log.write(row("a"))
    end = path.stat().st_size
    log.write(row("b"))
    log.close()
    whole_file = path.read_bytes()
    for length in range(end, len(whole_file)):
        path.write_bytes(whole_file[:length])
        assert set(read_log(path)[1]) == {"a"}
        again = Lines(path)
        assert [one["id"] for one in again.read()] == ["a"]
        again.close()
        assert path.stat().st_size == end


@pytest.mark.parametrize(
    "data, said",
    [
        (b'{"runs": [{"n": 1, "name": "a"}, {"n": true, "name": "b"}]}', "runs[1].n=True; possible: a whole number"),
        (b'{"runs": [{"n": 1, "name": ["a"]}]}', "runs[0].name=['a']; possible: text"),
        (b'{"runs": [{"n": 1, "name": "a", "share": 2}]}', "runs[0].share=2; possible: a number from 0 to 1"),
        (b'{"runs": [{"n": 1}]}', "runs[0].name is missing; needed: n, name"),
        (b'{"runs": {}}', "runs={}; possible: a list"),
        (b"[]", ": it=[]; possible: a mapping with runs"),
        (b'{"runs": [{"n": NaN}]}', "NaN is no number"),
        (b'{"runs": [{"n": 1e999, "name": "a"}]}', "runs[0].n=inf"),
        (b'{"runs": "\xff"}', "'utf-8' codec can't decode"),
        (b"", "cannot be read as JSON"),
        (b"[" * 10**5, "nested too deeply"),
        (b'{"runs": ' + b"[" * 150 + b"]" * 150 + b"}", "nested too deeply"),
        (b'{"runs": "' + b"x" * 10**5 + b'"}', "xx...xx"),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path, data, said):
    """One short line names the file, the place in it, the value, and what is possible."""
    path = tmp_path / "some.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_json(path, SHAPE, "possible: another")
    line = str(caught.value)
    assert line.startswith(f"{str(path)!r} is damaged")
    assert said in line
    assert line.endswith("; possible: another")
    assert len(line) < 400
    path.write_bytes(b'\xef\xbb\xbf{"runs": [{"n": 1, "name": "a"}], "more": 1}')
    assert read_json(path, SHAPE, "")["more"] == 1
