"""Where rows of benchmarks come from: files of several kinds, GQA's two configs, rows written in other ways."""

import json
from pathlib import Path

import datasets
import pytest

from vtc.core.errors import ConfigError
from vtc.eval.data.docs import ROW, Docs
from vtc.eval.tasks import TASKS

FIXTURES = Path(__file__).parent / "fixtures" / "tasks"
QUESTIONS, PICTURES = "testdev_balanced_instructions", "testdev_balanced_images"


def rows_of(name: str) -> list[dict]:
    """The rows of a fixture."""
    return [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def dataset_of(rows: list[dict]) -> datasets.Dataset:
    """The rows as the hub has them: pictures are stored in an Image column."""
    paths = [{**row, "image": str(FIXTURES / row["image"])} if "image" in row else row for row in rows]
    made = datasets.Dataset.from_list(paths)
    return made.cast_column("image", datasets.Image()) if "image" in made.column_names else made


def write_lines(file: Path, rows: list[dict]) -> None:
    """Rows as JSON lines, in a folder that is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def seen(task, docs: Docs) -> list[tuple]:
    """All that a task makes of docs."""
    texts = [docs.text(i) for i in range(len(docs))]
    assert not any("image" in text for text in texts) or isinstance(docs.rows, list)
    pictures = [[(one.size, one.convert("RGB").tobytes()) for one in task.images(docs[i])] for i in range(len(docs))]
    return [
        (task.ident(doc), task.category(doc), task.prompt(doc), task.reference(doc), picture)
        for doc, picture in zip(texts, pictures)
    ]


@pytest.mark.parametrize("name", ["vqav2", "textvqa_ocr", "vizwiz", "ai2d", "docvqa", "gqa", "ocrbench"])
@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_files_of_datasets(tmp_path, name, kind):
    """Parquet and save_to_disk with an Image column give what JSON lines with paths give."""
    file = "textvqa" if name == "textvqa_ocr" else name
    task = TASKS[name]()
    if kind == "parquet":
        dataset_of(rows_of(file)).to_parquet(tmp_path / f"{task.splits[0]}-00000-of-00001.parquet")
    else:
        dataset_of(rows_of(file)).save_to_disk(tmp_path / "saved")
    found = task.open(place=str(tmp_path if kind == "parquet" else tmp_path / "saved"))
    assert seen(task, found) == seen(task, task.open(place=str(FIXTURES / f"{file}.jsonl")))


def hub_like(folder: Path, kind: str, names: tuple[str, ...] = ("n100002", "n100001")) -> Path:
    """GQA's repository: questions without pictures in one config's folder, `names` of the pictures in the other's."""
    rows = rows_of("gqa")
    picture = {row["imageId"]: row["image"] for row in rows}
    questions = [{key: value for key, value in row.items() if key != "image"} for row in rows]
    if kind == "parquet":
        for name, part in ((QUESTIONS, questions), (PICTURES, [{"id": n, "image": picture[n]} for n in names])):
            (folder / name).mkdir(parents=True)
            dataset_of(part).to_parquet(folder / name / "testdev-00000-of-00001.parquet")
        return folder
    write_lines(folder / QUESTIONS / "testdev.jsonl", questions)
    write_lines(folder / PICTURES / "testdev.jsonl", [{"id": n, "image": picture[n]} for n in names])
    (folder / PICTURES / "pictures").symlink_to(FIXTURES / "pictures")
    return folder


@pytest.mark.parametrize("kind", ["parquet", "lines"])
def test_gqa_is_joined(tmp_path, kind):
    """Questions meet their pictures in whatever order these stand; the limit and the record are those of questions."""
    task = TASKS["gqa"]()
    docs = task.open(place=str(hub_like(tmp_path / "GQA", kind)))
    assert seen(task, docs) == seen(task, task.open(place=str(FIXTURES / "gqa.jsonl")))
    record = docs.record
    assert (record["id"], record["config"], record["split"]) == ("GQA", QUESTIONS, "testdev")
    few = task.open(limit=3, place=str(tmp_path / "GQA"))
    assert [few.text(i)["id"] for i in range(len(few))] == ["20100001", "20100002", "20100003"]
    assert task.images(few[2])[0].tobytes() == task.images(docs[3])[0].tobytes() != task.images(few[0])[0].tobytes()


def test_gqa_joins_configs_of_one_owner(monkeypatch):
    """On the hub pictures come from the repository that gave the questions, the old owner's if the new has none."""
    asked = []
    questions = [{key: value for key, value in row.items() if key != "image"} for row in rows_of("gqa")]
    pictures = [{"id": row["imageId"], "image": row["image"]} for row in rows_of("gqa")[::2]]

    def load_dataset(name, config, **rest):
        asked.append((name, config))
        if name.startswith("lmms-lab-encoder/"):
            raise FileNotFoundError("moved")
        return dataset_of(questions if config == QUESTIONS else pictures)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = TASKS["gqa"]()
    assert seen(task, task.open()) == seen(task, task.open(place=str(FIXTURES / "gqa.jsonl")))
    assert asked == [("lmms-lab-encoder/GQA", QUESTIONS), ("lmms-lab/GQA", QUESTIONS), ("lmms-lab/GQA", PICTURES)]
    asked.clear()
    assert len(task.open(place="someone/gqa")) == 4
    assert asked == [("someone/gqa", QUESTIONS), ("someone/gqa", PICTURES)]


def test_gqa_without_pictures(tmp_path):
    """A picture that is missing, and rows that have none at all, are one clear line each."""
    task = TASKS["gqa"]()
    place = hub_like(tmp_path / "GQA", "lines", names=("n100001",))
    with pytest.raises(ConfigError, match="no picture for 2 of 4 questions of GQA, the first is 'n100002'$"):
        task.open(place=str(place))
    for alone in (place / QUESTIONS / "testdev.jsonl", place / QUESTIONS):
        with pytest.raises(ConfigError, match=f"no column 'image', nor is there a folder '{PICTURES}' in it$"):
            task.open(place=str(alone))


@pytest.mark.parametrize("limit, kept", [(1, [0, 3]), (2, [0, 3]), (3, [0, 1, 3]), (4, [0, 1, 3]), (5, [0, 1, 3]),
                                         (6, [0, 1, 2, 3, 4, 5]), (None, [0, 1, 2, 3, 4, 5])])  # fmt: skip
def test_limit_never_cuts_a_group(limit, kept):
    """Groups are taken whole, in the order of their first docs, as many as fit, and at least one."""
    rows = [{"group": name} for name in "abcacc"]
    docs = Docs(rows, rows, {}).limited(limit, lambda doc: doc["group"])
    assert [docs[i][ROW] for i in range(len(docs))] == kept


@pytest.mark.parametrize("value", [None, [], "", [""] * 10, [None], float("nan"), [{"answer": None}]])
@pytest.mark.parametrize("name", ["vqav2", "textvqa", "vizwiz", "docvqa", "infovqa", "ocrbench"])
def test_answers_that_are_not_public(name, value):
    """There is no reference, and scoring with none is refused in one line."""
    task = TASKS[name]()
    reference = task.reference({"answers": value, "answer": value})
    assert reference is None
    with pytest.raises(ConfigError, match=f"^task '{name}': this row has no public answer to score with; possible: "):
        task.score(reference, "cat")


@pytest.mark.parametrize("name", ["vqav2", "textvqa", "textvqa_ocr", "vizwiz", "docvqa", "infovqa"])
def test_split_without_public_answers(tmp_path, monkeypatch, name):
    """The test split is refused before it is downloaded; local rows without answers before they are asked."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **rest: pytest.fail("downloaded"))
    task = TASKS[name]()
    with pytest.raises(ConfigError, match=f"^split='test' of task '{name}' has no public answers, only .* possible: v"):
        task.open("test")
    file = "textvqa" if name == "textvqa_ocr" else name
    rows = rows_of(file)
    for hidden in ({"answers": None}, {"answers": []}):
        write_lines(tmp_path / "test.jsonl", [row | hidden for row in rows])
        with pytest.raises(ConfigError, match=f"^the data of task '{name}' has no answers in any row; possible: "):
            task.open("test", place=str(tmp_path))
    with pytest.raises(KeyError, match="answers"):
        task.reference({"question": "what?"})


@pytest.mark.parametrize("value", [["cat", "dog"], ("cat", "dog"), [{"answer": "cat"}, {"answer": "dog"}],
                                   {"answer": ["cat", "dog"], "answer_id": [1, 2]}])  # fmt: skip
def test_forms_of_answers(value):
    """Lists of texts, of dicts, or a dict of lists are the same reference."""
    assert TASKS["vqav2"]().reference({"answers": value}) == ["cat", "dog"]


def test_single_and_numeric_answers():
    """A number or one text in the place of a list of texts."""
    assert TASKS["docvqa"]().reference({"answers": "Jones"}) == ["Jones"]
    assert TASKS["docvqa"]().reference({"answers": [1975, "75"]}) == ["1975", "75"]
    assert TASKS["ocrbench"]().reference({"answer": 12, "dataset": None}) == {"answers": ["12"], "dataset": ""}
    assert TASKS["chartqa"]().reference({"answer": 14}) == TASKS["chartqa"]().reference({"answer": "14"}) == "14"


@pytest.mark.parametrize("name, column", [("vqav2", "question_id"), ("textvqa", "question_id"), ("gqa", "id"),
                                          ("vizwiz", "question_id"), ("docvqa", "questionId")])  # fmt: skip
def test_ident_without_a_column(name, column):
    """The row's number is the name where the column is absent or empty; 0 is a name."""
    task = TASKS[name]()
    assert [task.ident({ROW: 7}), task.ident({ROW: 7, column: None}), task.ident({ROW: 7, column: ""})] == ["7"] * 3
    assert task.ident({ROW: 7, column: 0}) == "0"
    assert task.ident({column: 12}) == "12"


@pytest.mark.parametrize("answer", ["B", "b", 1, "1"])
@pytest.mark.parametrize("options", [["owl", "rabbit"], {"A": "owl", "B": "rabbit", "C": None, "D": "nan"}])
def test_options_of_ai2d(answer, options):
    """Options as a list or by letter, empty ones left out; the answer as a letter or a place."""
    task = TASKS["ai2d"]()
    row = {"question": "Who eats grass?", "options": options, "answer": answer}
    assert task.reference(row) == {"answer": "B", "options": {"A": "owl", "B": "rabbit"}}
    assert "\nA. owl\nB. rabbit\nAnswer with" in task.prompt(row)


def test_answer_that_is_no_option():
    """An answer beyond the options is refused in one line."""
    with pytest.raises(ConfigError, match="answer=2 is no option of the row; possible: A, B$"):
        TASKS["ai2d"]().reference({"options": ["owl", "fox"], "answer": 2})
