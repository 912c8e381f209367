"""Benchmarks on videos: from rows of the hub's form to prompts, clips, scores and figures, in every dialect."""

import json

import pytest

from tests.helpers_clips import frame_folder
from tests.helpers_tasks import FIXTURES, docs_of, figures_of, json_rows, opened, scored
from vtc.core.errors import ConfigError
from vtc.eval.data.docs import FOLDER, ROW, Docs
from vtc.eval.tasks import DIALECTS, TASKS
from vtc.eval.tasks._video import bare

VIDEO = sorted(name for name in TASKS if TASKS[name].takes_clips and not name.startswith("demo"))
LETTER = "\nAnswer with the option's letter from the given choices directly."
BOX = "How many boxes move?\nA. One.\nB. Two.\nC. Three.\nD. None."
SELECT = "Select the best answer to the following multiple-choice question based on the video"
ONLY = "Respond with only the letter (A, B, C, or D) of the correct option."
SANK = "What happened after the box left?\nOption{}:\n(A) It came back.\n(B) It sank.\n(C) It broke."
RED = "What colour is the box?\n{}(A) Blue\n(B) Red\n(C) Green\n(D) White"
FILM = "What is the film about?\n{}(A) A box\n(B) A boat\n(C) A bird\n(D) A bell"
DOES = "What is C mainly doing?\n{}A. C cooks.\nB. C paints.\nC. C pushes a box.\nD. C reads.\nE. C cleans."
MLVU = (
    "Carefully watch this video and pay attention to every detail. Based on your observations, select the best option "
    "that accurately addresses the question.Question: "
)
PROMPTS = {
    ("videomme", 0): {
        "llava": f"{SELECT} and the subtitles. {ONLY}\n{BOX}\nThe best answer is:",
        "lmms": f"{SELECT} and the subtitles. {ONLY}\n{BOX}\n{LETTER}",
        "qwen": f"\nThese are the frames of a video. {SELECT}. {ONLY}\nQuestion: {BOX}\nAnswer: ",
    },
    ("mvbench", 0): {
        "": "Question:" + SANK.format("") + "\nOnly give the best option.\n",
        "qwen": "Carefully watch the video and pay attention to the cause and sequence of events, the detail and "
        "movement of objects, and the action and pose of persons. Based on your observations, select the best option "
        "that accurately addresses the question.\nQuestion: " + SANK.format("s")
        + "<picture>\nOnly give the best option.Best option:(",
    },
    ("mlvu_dev", 0): {
        "": RED.format("") + "\nOnly give the best option.\nBest option: (",
        "qwen": MLVU + RED.format("Options:\n") + "<picture>\nOnly give the best option.",
    },
    ("mlvu_dev", 2): {
        "": FILM.format("") + "\nOnly give the best option.\nBest option: (",
        "qwen": MLVU + FILM.format("Options:\n") + "<picture>\nOnly give the best option.",
    },
    ("longvideobench_val", 0): {
        "": f"What does the box pass first?\nA. A line\nB. A dot{LETTER}\n",
        "qwen": f"What does the box pass first?\nA. A line\nB. A dot{LETTER}",
    },
    ("egoschema", 0): {
        "": DOES.format("") + LETTER,
        "qwen": "Question: " + DOES.format("Options:\n") + "\nPlease select the correct answer from the options above.",
    },
}  # fmt: skip


@pytest.mark.parametrize("name, row", PROMPTS, ids=lambda value: str(value))
@pytest.mark.parametrize("dialect", DIALECTS)
def test_prompt(name, row, dialect):
    """The prompt letter by letter."""
    task, docs = opened(name, dialect)
    expected = PROMPTS[name, row]
    assert task.prompt(docs.text(row)) == expected.get(dialect, expected.get(""))


@pytest.mark.parametrize("name", VIDEO)
def test_rows(name):
    """Every row has one clip, a name of its own and the same reference in all dialects; its group is its video."""
    assert name in {name for name, _ in PROMPTS}
    for dialect in DIALECTS:
        task, docs = opened(name, dialect)
        clips = [task.clips(docs[i]) for i in range(len(docs))]
        assert all(len(mine) == 1 and mine[0].fps == task.folder_fps for mine in clips)
        assert {(docs.text(i)[FOLDER], len(mine[0].frames)) for i, mine in enumerate(clips)} == {
            (FIXTURES, 4), (FIXTURES, 5)
        }  # fmt: skip
        assert [task.images(docs[i]) for i in range(len(docs))] == [[]] * len(docs)
        assert len({task.ident(doc) for doc in docs_of(docs)}) == len(docs)
        assert {task.group(doc).removesuffix(".mp4") for doc in docs_of(docs)} == {"clip_a", "clip_b"}
        references = [task.reference(doc) for doc in docs_of(docs)]
        assert references == [TASKS[name]().reference(doc) for doc in docs_of(docs)]
        assert all(task.prompt(doc).count("<picture>") <= 1 for doc in docs_of(docs))


YES, NO = ("B", 1), (None, 0)
FOUR = {"A": "a cat", "B": "a dog", "C": "a cow", "D": "a hen"}
ANSWERS = [  # task, answer, then what each dialect reads and whether that is right: llava and lmms, qwen
    ("videomme", "B", YES, YES),
    ("videomme", "The answer is B.", YES, YES),
    ("videomme", "I see B and not C", ("C", 0), ("B", 1)),  # the letter finder takes the last one
    ("videomme", "It is a dog", NO, ("B", 1)),
    ("videomme", "none", NO, NO),
    ("mvbench", "B", YES, YES),
    ("mvbench", "(B) a dog", YES, YES),
    ("mvbench", "b. a dog", YES, YES),
    ("mvbench", "It is a dog, B", ("A", 0), NO),  # the article
    ("mvbench", "E", NO, NO),
    ("mvbench", "", NO, NO),
    ("mlvu_dev", "B", YES, YES),
    ("mlvu_dev", "B) a dog", YES, YES),
    ("mlvu_dev", "option a) is wrong, B", ("B", 1), ("B", 1)),
    ("mlvu_dev", "a dog", NO, ("B", 1)),
    ("longvideobench_val", "B", YES, YES),
    ("longvideobench_val", "The best option is B", YES, ("B", 1)),
    ("longvideobench_val", "Best option: C", ("C", 0), ("B", 1)),  # VLMEvalKit's list of phrases lacks a comma
    ("longvideobench_val", "perhaps a dog", NO, ("B", 1)),
    ("longvideobench_val", "no idea", NO, NO),
    ("egoschema", "(B)", YES, YES),
    ("egoschema", "B or C", YES, NO),
    ("egoschema", "I am quite sure that b. a dog is seen", YES, ("B", 1)),
    ("egoschema", "no idea", NO, NO),
]


@pytest.mark.parametrize("name, text, lmms, qwen", ANSWERS)
def test_answers(name, text, lmms, qwen):
    """What is read, and whether it is right."""
    for dialect, (parsed, right) in zip(DIALECTS, (lmms, lmms, qwen)):
        score = TASKS[name](dialect=dialect).score({"answer": "B", "options": FOUR}, text)
        assert (score["parsed"], score["correct"]) == (parsed, right), dialect


RIGHT = {  # the right letters of the fixture, and the answer of which row is made wrong
    "videomme": ("ADBC", 1), "mvbench": ("BBAE", 1), "mlvu_dev": ("BCAD", 1), "longvideobench_val": ("BCA", 0),
    "egoschema": ("CD", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_figures(name, dialect):
    """All right, then one wrong: by length, by kind."""
    task, docs = opened(name, dialect)
    letters, place = RIGHT[name]
    assert [task.reference(doc)["answer"] for doc in docs_of(docs)] == list(letters)
    found = figures_of(task, scored(task, docs_of(docs), list(letters)))
    assert set(found.values()) == {1}
    wrong = ["A" if i == place and letters[i] != "A" else letter for i, letter in enumerate(letters)]
    found = figures_of(task, scored(task, docs_of(docs), wrong))
    assert found["accuracy"] == pytest.approx(1 - 1 / len(docs))
    kinds = {
        "videomme": {"short": 1 / 2, "medium": 1, "long": 1}, "longvideobench_val": {"15": 1 / 2, "600": 1},
        "mvbench": {"action_sequence": 1, "moving_count": 1 / 2, "episodic_reasoning": 1},
        "mlvu_dev": {"needle": 1, "count": 1 / 2, "topic_reasoning": 1}, "egoschema": {"egoschema": 1 / 2},
    }[name]  # fmt: skip
    assert {kind: found[f"accuracy/{kind}"] for kind in kinds} == kinds
    if name in ("mvbench", "mlvu_dev"):
        assert found[task.primary] == pytest.approx(sum(kinds.values()) / len(kinds))


def test_mlvu_without_open_ended_kinds():
    """The fifth row asks for a summary."""
    assert len(opened("mlvu_dev")[1]) == 4
    assert len(json_rows(FIXTURES / "mlvu_dev.jsonl")) == 5


def test_mvbench_by_kinds(tmp_path):
    """A copy of the hub's repository: a file for each kind, videos below the paths of their sources."""
    rows = [dict(row) for row in json_rows(FIXTURES / "mvbench.jsonl")]
    (tmp_path / "json").mkdir()
    for kind, mine in (("action_sequence", rows[:1]), ("moving_count", rows[1:3])):
        for row in mine:
            del row["task_type"]
        (tmp_path / "json" / f"{kind}.json").write_text(json.dumps(mine))
    frame_folder(tmp_path / "star" / "Charades_segment" / "clip_a", 3)
    frame_folder(tmp_path / "data0613" / "clevrer" / "video_validation" / "clip_b", 20)
    task = TASKS["mvbench"]()
    docs = task.open(place=str(tmp_path))
    task.check(docs)
    names = [task.names(doc) for doc in docs_of(docs)]
    assert [(one["id"], one["category"]) for one in names] == [
        ("action_sequence-0", "action_sequence"), ("moving_count-0", "moving_count"), ("moving_count-1", "moving_count")
    ]  # fmt: skip
    assert docs.record["config"] == "action_sequence, moving_count"
    assert len(docs.record["revision"]) == 16
    assert [len(task.clips(docs[i])[0].frames) for i in (0, 1)] == [3, 16]
    assert task.clips(docs[1])[0].fps == 3.0
    with pytest.raises(ConfigError, match=f"no video 'clip_a.mp4' in '{tmp_path.name}'; possible: a file, or a folder"):
        task.clips(docs[2])


def test_frames_and_videos_are_part_of_the_data(tmp_path):
    """The record, and so the run key, has the number of frames and the state of the videos."""
    frame_folder(tmp_path / "clip_a", 12)
    frame_folder(tmp_path / "clip_b", 3)
    place = str(FIXTURES / "egoschema.jsonl")

    def record(**options) -> dict:
        return TASKS["egoschema"](**options).open(place=place).record

    assert (record()["frames"], record()["sampling"]) == (32, "uniform")
    assert record(frames=8) == record() | {"frames": 8}
    other = record(videos=str(tmp_path))
    assert other == record() | {"videos": other["videos"]} != record()
    task = TASKS["egoschema"](frames=8, videos=str(tmp_path))
    docs = task.open(place=place)
    assert [len(task.clips(docs[i])[0].frames) for i in range(2)] == [8, 3]
    with pytest.raises(
        ConfigError, match="^--videos 'no/folder' is no folder; possible: the folder of egoschema's vid"
    ):
        record(videos="no/folder")


def test_data_from_the_hub_needs_a_folder():
    """Rows without videos are refused before anything is asked, and one by one."""
    rows = json_rows(FIXTURES / "videomme.jsonl")
    task = TASKS["videomme"]()
    docs = task.placed(Docs(rows, rows, {}), None)
    assert docs.record == {"frames": 32, "sampling": "uniform"}
    with pytest.raises(ConfigError, match="^the videos of task 'videomme' are no part of its data; possible: --videos"):
        task.check(docs)
    with pytest.raises(ConfigError, match="^no folder of videos for 'clip_a.mp4'; possible: --videos FOLDER"):
        task.clips(docs[0])


@pytest.mark.parametrize("name, changes", [
    ("videomme", {"answer": "E"}), ("videomme", {"options": "A. One."}), ("videomme", {"videoID": None}),
    ("mvbench", {"answer": "It flew."}), ("mvbench", {"candidates": ["It sank.", "It sank."]}),
    ("mlvu_dev", {"answer": "E"}), ("mlvu_dev", {"question": "No options?"}),
    ("mlvu_dev", {"question": "Which?\n(B) one\n(A) two"}), ("mlvu_dev", {"video_name": None}),
    ("longvideobench_val", {"correct_choice": 2}), ("longvideobench_val", {"option1": "N/A"}),
    ("egoschema", {"answer": "5"}), ("egoschema", {"option": None}),
])  # fmt: skip
def test_rows_that_cannot_be_right(name, changes):
    """Options, answers and videos that are none: one short line."""
    row = {**json_rows(FIXTURES / f"{name}.jsonl")[0], ROW: 0, **changes}
    with pytest.raises(ConfigError, match="possible: ") as caught:
        TASKS[name]().asked(row)
    assert len(str(caught.value)) < 300


def test_options_with_and_without_letters():
    """Letters go only where every option begins with its own."""
    assert bare({"A": "A. one", "B": "(B) two"}) == {"A": "one", "B": "two"}
    for options in ({"A": "A. Smith", "B": "Smith"}, {"A": "B. one", "B": "A. two"}):
        assert bare(options) == options
