"""Multiple-choice benchmarks: from rows of the hub's form to prompts and pictures, in every dialect."""

import json

import datasets
import pytest
from PIL import Image

from tests.helpers_tasks import FIXTURES, docs_of, json_rows, opened
from vtc.core.errors import ConfigError
from vtc.eval.tasks import DIALECTS, TASKS

LETTER = "\nAnswer with the option's letter from the given choices directly."
SHORT = "\nAnswer the question using a single word or phrase."
QWEN = "\nPlease select the correct answer from the options above."

# Task and row, then the prompt: one text where llava and lmms agree.
PROMPTS = {
    ("mmbench_en", 0): {
        "llava": "Which season is shown?\nA. winter\nB. summer" + LETTER,
        "lmms": "Which season is shown? There are several options:\nA. winter\nB. summer\n" + LETTER,
        "qwen": "Question: Which season is shown?\nOptions:\nA. winter\nB. summer" + QWEN,
    },
    ("mmbench_en", 2): {
        "llava": "The kettle is boiling.\nWhat will the girl do next?\nA. pour tea\nB. sleep\nC. swim" + LETTER,
        "lmms": "The kettle is boiling. What will the girl do next? There are several options:\n"
        "A. pour tea\nB. sleep\nC. swim\n\nAnswer with the option's letter from the given choices directly.",
        "qwen": "Hint: The kettle is boiling.\nQuestion: What will the girl do next?\nOptions:\n"
        "A. pour tea\nB. sleep\nC. swim\nPlease select the correct answer from the options above.",
    },
    ("mmbench_cn", 0): {
        "llava": "图中是哪个季节？\nA. 冬天\nB. 夏天\n请直接回答选项字母。",
        "lmms": "图中是哪个季节？ There are several options:\nA. 冬天\nB. 夏天\n"
        "\n请直接使用所提供的选项字母作为答案回答。",
        "qwen": "Question: 图中是哪个季节？\nOptions:\nA. 冬天\nB. 夏天\n请直接回答选项字母。",
    },
    ("mmbench_cn", 2): {
        "llava": "水壶开了。\n女孩接下来会做什么？\nA. 倒茶\nB. 睡觉\nC. 游泳\n请直接回答选项字母。",
        "lmms": "水壶开了。 女孩接下来会做什么？ There are several options:\nA. 倒茶\nB. 睡觉\nC. 游泳\n"
        "\n请直接使用所提供的选项字母作为答案回答。",
        "qwen": "Hint: 水壶开了。\nQuestion: 女孩接下来会做什么？\nOptions:\n"
        "A. 倒茶\nB. 睡觉\nC. 游泳\n请直接回答选项字母。",
    },
    ("scienceqa_img", 0): {
        "": "Context: Look at the picture.\nWhich animal is a fish?\nA. a cod\nB. a crab" + LETTER,
        "qwen": "Hint: Look at the picture.\nQuestion: Which animal is a fish?\nOptions:\nA. a cod\nB. a crab" + QWEN,
    },
    ("scienceqa_img", 1): {
        "": "Which town lies farthest north?\nA. Alta\nB. Bari\nC. Cork" + LETTER,
        "qwen": "Question: Which town lies farthest north?\nOptions:\nA. Alta\nB. Bari\nC. Cork" + QWEN,
    },
    ("seedbench", 0): {
        "": "How many boats are there?\nA. One\nB. Two\nC. Three\nD. None" + LETTER,
        "qwen": "Question: How many boats are there?\nOptions:\nA. One\nB. Two\nC. Three\nD. None" + QWEN,
    },
    ("mmmu_val", 0): {
        "": "<picture>Who made this vase?\nA. a potter\nB. a smith\nC. a weaver\n" + LETTER,
        "qwen": "<picture>Question: <image 1> Who made this vase?\nOptions:\nA. a potter\nB. a smith\nC. a weaver"
        + QWEN,
    },
    ("mmmu_val", 1): {
        "": "Compare<picture>with<picture>. Which spring in <image 2> is stiffer?\nA. the left one\nB. the right one\n"
        + LETTER,
        "qwen": "<picture><picture>Question: Compare <image 2> with <image 1>. Which spring in <image 2> is stiffer?\n"
        "Options:\nA. the left one\nB. the right one" + QWEN,
    },
    ("mmmu_val", 2): {
        "": "Which score is in C major?\nA.<picture>B.<picture>C.<picture>"
        "Answer with the option's letter from the given choices directly.",
        "qwen": "<picture><picture><picture>Question: Which score is in C major?\nOptions:\n"
        "A. <image 1>\nB. <image 2>\nC. <image 3>" + QWEN,
    },
    ("mmmu_val", 3): {
        "": "What force acts in<picture>, in newtons?\n" + SHORT,
        "qwen": "<picture>Question: What force acts in <image 1>, in newtons?",
    },
    ("mmstar", 0): {
        "": "What is on the chair?\nOptions: A: A cat., B: A hat., C: A book., D: Nothing."
        "\nAnswer with the option's letter from the given choices directly",
        "qwen": "Question: What is on the chair?\nOptions:\nA. A cat.\nB. A hat.\nC. A book.\nD. Nothing." + QWEN,
    },
    ("mmstar", 3): {
        "": "Is the angle at P a right one?\nA. Yes, B. No, C. Cannot be told, D. Only at noon"
        "\nAnswer with the option's letter from the given choices directly",
        "qwen": "Question: Is the angle at P a right one? Please answer yes or no.\n"
        "A. Yes, B. No, C. Cannot be told, D. Only at noon" + QWEN,
    },
    ("realworldqa", 0): {
        "": "Which way does the lane turn?\n\nA. Left\nB. Right\nC. It goes straight on.\n"
        "Please answer directly with only the letter of the correct option and nothing else.",
        "qwen": "Question: Which way does the lane turn?\nOptions:\nA. Left\nB. Right\nC. It goes straight on." + QWEN,
    },
    ("realworldqa", 2): {
        "": "Does the road go uphill or downhill? Please answer directly with a single word or number.",
        "qwen": "Does the road go uphill or downhill?"
        "\nPlease try to answer the question with short words or phrases if possible.",
    },
}
PICTURES = {"mmmu_val": [1, 2, 3, 1, 1], "scienceqa_img": [1, 1, 0, 1]}  # of each row; others have one
NAMES = sorted({name for name, _ in PROMPTS})


@pytest.mark.parametrize("name, row", PROMPTS, ids=lambda value: str(value))
@pytest.mark.parametrize("dialect", DIALECTS)
def test_prompt(name, row, dialect):
    """The prompt letter by letter."""
    task, docs = opened(name, dialect)
    expected = PROMPTS[name, row]
    assert task.prompt(docs.text(row)) == expected.get(dialect, expected.get(""))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_names_references(name):
    """Every row has its pictures, as many as the prompt shows, a name of its own and a reference for all dialects."""
    for dialect in DIALECTS:
        task, docs = opened(name, dialect)
        sizes = [[image.size for image in task.images(docs[i])] for i in range(len(docs))]
        assert sizes == [[(32, 24)] * n for n in PICTURES.get(name, [1] * len(docs))]
        if task.inline:
            assert [task.prompt(doc).count("<picture>") for doc in docs_of(docs)] == [len(found) for found in sizes]
        assert len({task.ident(doc) for doc in docs_of(docs)}) == len(docs)
        references = [task.reference(doc) for doc in docs_of(docs)]
        assert json.loads(json.dumps(references, allow_nan=False)) == references
        assert references == [TASKS[name]().reference(doc) for doc in docs_of(docs)]


def test_mmmu_pictures_stand_in_the_order_of_the_prompt():
    """Question 2 names the second picture first; Qwen's dialect has the pictures by number."""

    def files(dialect: str) -> list[str]:
        task, docs = opened("mmmu_val", dialect)
        here = {Image.open(FIXTURES / f"pictures/{name}.png").tobytes(): name for name in "abcd"}
        return [here[image.tobytes()] for image in task.images(docs[1])]

    assert files("llava") == files("lmms") == ["b", "a"]
    assert files("qwen") == ["a", "b"]


def test_mmmu_refuses_what_it_cannot_read():
    """One line for a picture that is named and absent, and for options that are no list."""
    task, docs = opened("mmmu_val")
    with pytest.raises(ConfigError, match="validation_Physics_2.*image_2"):
        task.images({**docs[1], "image_2": None})
    with pytest.raises(ConfigError, match="no list"):
        task.prompt({**docs[0], "options": "a potter, a smith"})


@pytest.mark.parametrize("name", NAMES)
def test_limits_cut_no_group(name):
    """Every limit gives whole groups, at least one; rotations of a question of MMBench are one."""
    task, whole = opened(name)
    groups = [task.group(doc) for doc in docs_of(whole)]
    for limit in range(1, len(whole) + 1):
        found = [task.group(doc) for doc in docs_of(opened(name, limit=limit)[1])]
        assert all(found.count(group) == groups.count(group) for group in set(found))
        assert len(found) <= limit or len(set(found)) == 1
    largest = max(groups.count(group) for group in groups)
    assert largest == (3 if name.startswith("mmbench") else 1)


def test_rows_of_other_kinds_are_left_out():
    """Videos of SEED-Bench; rows of the other language of MMBench."""
    task, docs = opened("seedbench")
    assert [task.ident(doc) for doc in docs_of(docs)] == ["101", "102", "103"]
    assert TASKS["mmbench_en"]().wants({"language": "en"})
    assert not TASKS["mmbench_cn"]().wants({"language": "en"})
    assert TASKS["mmbench_cn"]().wants({})


def test_local_rows_of_mmbench():
    """Options in a mapping, no index: the number of the row is the name and the group."""
    task = TASKS["mmbench_en"]()
    doc = {"question": "Which?", "hint": None, "options": {"A": "one", "B": "two", "C": None}, "answer": "B", "_row": 7}
    assert (task.ident(doc), task.group(doc), task.category(doc)) == ("7", "7", "mmbench_en")
    assert task.prompt(doc) == "Which?\nA. one\nB. two" + LETTER
    assert task.reference(doc) == {"answer": "B", "options": {"A": "one", "B": "two"}}
    assert task.prompt({**doc, "options": ["one", "nan", "two"]}) == "Which?\nA. one\nC. two" + LETTER
    with pytest.raises(ConfigError, match="mmbench_en.*no public answer"):
        task.reference({**doc, "answer": "nan"})


def hub_copy(name: str, **features) -> datasets.Dataset:
    """The fixture as a data set with pictures inside."""
    rows = json_rows(FIXTURES / f"{name}.jsonl")
    for row in rows:
        for column in features:
            value = row[column]
            path = (
                [str(FIXTURES / one) for one in value] if isinstance(value, list) else value and str(FIXTURES / value)
            )
            row[column] = path
    made = datasets.Dataset.from_list(rows)
    for column, feature in features.items():
        made = made.cast_column(column, feature)
    return made


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_scienceqa_from_a_copy_of_the_hub(form, tmp_path):
    """Text rows see no picture column, and still the row without a picture is of the category text."""
    made = hub_copy("scienceqa_img", image=datasets.Image())
    place = tmp_path / "copy"
    if form == "parquet":
        place = tmp_path / "test-00000-of-00001.parquet"
        made.to_parquet(place)
    else:
        made.save_to_disk(place)
    task, lines = opened("scienceqa_img")
    docs = task.open(place=str(place))
    assert "image" not in docs.text(0)
    assert [task.category(doc) for doc in docs_of(docs)] == ["image", "image", "text", "image"]
    assert [task.prompt(doc) for doc in docs_of(docs)] == [task.prompt(doc) for doc in docs_of(lines)]
    assert [[image.size for image in task.images(docs[i])] for i in range(4)] == [
        [(32, 24)],
        [(32, 24)],
        [],
        [(32, 24)],
    ]
    assert [task.ident(doc) for doc in docs_of(task.open(place=str(place), limit=2))] == ["0", "1"]


@pytest.mark.parametrize("form", ["parquet", "save_to_disk"])
def test_lists_and_columns_of_pictures_from_a_copy_of_the_hub(form, tmp_path):
    """SEED-Bench's lists of pictures, MMMU's seven columns."""
    features = {
        "seedbench": {"image": datasets.List(datasets.Image()) if hasattr(datasets, "List") else [datasets.Image()]},
        "mmmu_val": {f"image_{k}": datasets.Image() for k in range(1, 8)},
    }
    for name, columns in features.items():
        place = tmp_path / name
        if form == "parquet":
            place.mkdir()
            hub_copy(name, **columns).to_parquet(place / f"{TASKS[name].splits[0]}.parquet")
        else:
            hub_copy(name, **columns).save_to_disk(place)
        task, lines = opened(name)
        docs = task.open(place=str(place))
        assert not {*columns} & {*docs.text(0)}
        assert [task.prompt(doc) for doc in docs_of(docs)] == [task.prompt(doc) for doc in docs_of(lines)]
        for i in range(len(docs)):
            found = [image.convert("RGB").tobytes() for image in task.images(docs[i])]
            assert found == [image.convert("RGB").tobytes() for image in task.images(lines[i])]
            assert found
