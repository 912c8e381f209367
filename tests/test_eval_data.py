"""Data of benchmarks: every kind of local place, the hub's ids in order, pictures decoded late, whole groups."""

import gzip
import io
import json

import datasets
import pytest
from PIL import Image

from vtc.core.errors import ConfigError
from vtc.eval.data.docs import Docs, Source, open_source
from vtc.eval.data.pictures import picture

SOURCE = Source(("new/Set", "old/Set"), "sub")
SHA = "0123456789abcdef0123456789abcdef01234567"


def png(shade: int, size=(5, 4)) -> bytes:
    """A picture as the bytes of a file."""
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def table():
    """Three rows with a picture and a list of pictures each."""
    pictures = [Image.open(io.BytesIO(png(i))) for i in range(3)]
    features = datasets.Features(
        {"image": datasets.Image(), "more": datasets.Sequence(datasets.Image()), "q": datasets.Value("string")}
    )
    columns = {"image": pictures, "more": [pictures[:i] for i in range(3)], "q": ["a", "b", "c"]}
    return datasets.Dataset.from_dict(columns, features=features)


def opened(place, split="test", pictures=("image", "more")) -> Docs:
    """What a task would get."""
    return open_source("demo", SOURCE, split, pictures, str(place))


def check(docs: Docs) -> None:
    """All three rows, with and without pictures."""
    assert [docs.text(i)["q"] for i in range(3)] == ["a", "b", "c"]
    assert not {"image", "more"} & set(docs.text(0))
    assert [picture(docs[i]["image"], docs.folder).getpixel((0, 0))[0] for i in range(3)] == [0, 1, 2]
    assert [len(docs[i]["more"]) for i in range(3)] == [0, 1, 2]
    assert picture(docs[2]["more"][1]).size == (5, 4)
    assert len(docs.record["revision"]) == 16


def test_parquet_and_arrow(table, tmp_path):
    """A file; a folder of shards, other splits beside them; a hub-like folder with the config's name; save_to_disk."""
    table.to_parquet(tmp_path / "one.parquet")
    check(opened(tmp_path / "one.parquet"))
    shards = tmp_path / "shards" / "sub" / "data"
    shards.mkdir(parents=True)
    table.select([0, 1]).to_parquet(shards / "test-00000-of-00002.parquet")
    table.select([2]).to_parquet(shards / "test-00001-of-00002.parquet")
    table.select([2]).to_parquet(shards / "testdev-00000-of-00001.parquet")
    check(opened(tmp_path / "shards"))
    table.save_to_disk(tmp_path / "saved")
    check(opened(tmp_path / "saved"))
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "both")
    check(opened(tmp_path / "both"))
    with pytest.raises(ConfigError, match="cannot be read for task 'demo': 'val'"):
        opened(tmp_path / "both", split="val")
    check(opened(next((tmp_path / "saved").glob("*.arrow"))))


def test_json_lines(tmp_path):
    """Plain, gzipped and as a list; pictures by paths relative to the file; extra marks of the row."""
    (tmp_path / "p").mkdir()
    rows = []
    for i, q in enumerate("abc"):
        (tmp_path / "p" / f"{i}.png").write_bytes(png(i))
        rows.append({"image": f"p/{i}.png", "q": q})
    lines = "".join(json.dumps(row) + "\n\n" for row in rows)
    (tmp_path / "any.jsonl").write_text(lines)
    docs = opened(tmp_path)
    assert [docs[i]["q"] for i in range(3)] == ["a", "b", "c"]
    assert picture(docs[2]["image"], docs.folder).getpixel((0, 0)) == (2, 0, 0)
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "other.json").write_text(json.dumps(rows[:1]))
    assert len(opened(tmp_path)) == 3, "the file named after the split"
    assert len(opened(tmp_path / "other.json")) == 1
    before = opened(tmp_path / "any.jsonl").record
    (tmp_path / "any.jsonl").write_text(lines.replace('"a"', '"A"'))
    assert opened(tmp_path / "any.jsonl").record["revision"] != before["revision"]


def test_bad_places(tmp_path):
    """One line each: no such place, nothing in it, a broken line."""
    with pytest.raises(ConfigError, match="'no/where/at/all' does not exist; possible: a folder"):
        opened("no/where/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot be read for task 'demo'") as caught:
        opened(tmp_path / "empty")
    assert "\n" not in str(caught.value)
    (tmp_path / "x.jsonl").write_text('{"q": 1}\n{"q": \n')
    with pytest.raises(ConfigError, match=r"line 2 of 'x\.jsonl' is no JSON"):
        opened(tmp_path / "x.jsonl")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(ConfigError, match="cannot be read for task 'demo'"):
        opened(tmp_path / "bad.parquet")


def test_hub(table, monkeypatch):
    """Ids in their order, without asking for a login; the commit is in the record; a place may be another id."""
    asked = []

    def load(name, config, split, revision):
        asked.append((name, config, split, revision))
        if name == "new/Set":
            raise FileNotFoundError("not\nthere")
        table.info.download_checksums = {f"hf://datasets/{name}@{SHA}/x.parquet": {}}
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    docs = open_source("demo", SOURCE, "test", ("image", "more"))
    assert asked == [("new/Set", "sub", "test", None), ("old/Set", "sub", "test", None)]
    assert docs.record == {"id": "old/Set", "config": "sub", "split": "test", "revision": SHA}
    assert opened("my/Copy@main").record["id"] == "my/Copy"
    assert asked[-1] == ("my/Copy", "sub", "test", "main")
    with pytest.raises(ConfigError, match=r"no data for task 'demo': new/Set \(not there\); possible: --dataset-path"):
        open_source("demo", Source(("new/Set",)), "test", ("image",))


def test_limits_keep_groups():
    """A limit takes whole groups in the order of their first docs, at least one; rows keep their numbers."""
    rows = [{"g": g} for g in "aabacb"]
    docs = Docs(rows, rows, {})

    def taken(limit):
        return [doc["_row"] for doc in docs.limited(limit, lambda doc: doc["g"])]

    assert [taken(limit) for limit in (1, 3, 4, 5, 6, 99, None)] == [
        [0, 1, 3], [0, 1, 3], [0, 1, 3], [0, 1, 2, 3, 5], *[[0, 1, 2, 3, 4, 5]] * 3
    ]  # fmt: skip
    kept = docs.where(lambda doc: doc["g"] != "a")
    assert [doc["_row"] for doc in kept] == [2, 4, 5]
    assert [doc["_row"] for doc in kept.limited(1, lambda doc: doc["g"])] == [2, 5]


def test_pictures():
    """PIL, bytes, datasets' own form; nothing else."""
    whole = Image.new("RGB", (3, 2))
    assert picture(whole) is whole
    assert picture(png(7)).getpixel((0, 0)) == (7, 0, 0)
    assert picture({"bytes": png(8), "path": None}).getpixel((0, 0)) == (8, 0, 0)
    with pytest.raises(ConfigError, match="a picture cannot be a float"):
        picture(1.5)
