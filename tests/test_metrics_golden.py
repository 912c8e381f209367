"""The metrics against what the benchmarks' own scorers gave: each row of each file in a golden folder `metrics`.

Where the folders are is said in tests/test_golden.py. A file is a list of rows, one JSON object a line; a row holds
what a scorer was given and, in the other fields, what it returned.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_golden import ROOT, is_data, roots
from vtc.eval.metrics import choice, mmmu, short, video, vqa, yesno

GIVEN = {"id", "text", "pred", "answer", "answers", "options", "items", "n_choices", "answer_index", "dataset"}
LATER = {"video_parse"}  # files that folders elsewhere may lack
LEAST = 2400  # values that a whole folder has at least
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def normal_forms(row: dict) -> dict:
    return {"vqav2_norm": vqa.normalize(row["text"]), "evalai_norm": vqa.normalize_evalai(row["text"])}


def vqav2(row: dict) -> dict:
    given = row["pred"], row["answers"]
    return {"score": vqa.vqa_accuracy(*given), "score_official_server": vqa.vqa_accuracy_server(*given)}


def textvqa(row: dict) -> dict:
    return dict.fromkeys(("score", "score_llava_m4c"), vqa.textvqa_accuracy(row["pred"], row["answers"]))


def gqa(row: dict) -> dict:
    given = row["pred"], row["answer"]
    return {"score": short.gqa_lmms(*given), "score_llava": short.gqa_llava(*given)}


def pope_parse(row: dict) -> dict:
    return {
        "parsed_llava": yesno.pope_llava(row["pred"]),
        "parsed_lmms": yesno.pope_lmms(row["pred"]),
        "parsed_vlmevalkit": yesno.pope_vlmevalkit(row["pred"]),
    }


def pope_figures(items: list[dict], read: Callable[[str], str | None]) -> dict:
    """Figures of questions about objects, by the answers that `read` finds; None are wrong and in no other count."""
    n = Counter((item["label"], read(item["pred"])) for item in items)
    other = n["yes", None] + n["no", None]
    return yesno.detection(n["yes", "yes"], n["no", "yes"], n["yes", "no"], n["no", "no"], other)


def pope_sets(row: dict) -> dict:
    """LLaVA's script stops where a figure is nan; lmms-eval prints 0 there, and the yes ratio of the labels."""
    categories, items = defaultdict(list), row["items"]
    for item in items:
        categories[item["category"]].append(item)

    def llava(items: list[dict]) -> dict | None:
        figures = pope_figures(items, yesno.pope_llava)
        return None if any(math.isnan(value) for value in figures.values()) else figures

    lmms = {k: 0.0 if math.isnan(v) else v for k, v in pope_figures(items, yesno.pope_lmms).items()}
    labels = sum(item["label"] == "yes" for item in items) / len(items)
    return {
        "llava": llava(items),
        "llava_by_category": {name: llava(some) for name, some in categories.items()},
        "lmms": lmms | {"yes_ratio": labels},
    }


def mme_sets(row: dict) -> dict:
    """100 x (right questions / questions + pictures with both right / pictures), per category and summed."""
    pictures = defaultdict(lambda: defaultdict(list))
    for item in row["items"]:
        pictures[item["category"]][item["question_id"]].append(yesno.mme(item["pred"]) == item["answer"].lower())
    scores = {}
    for name, some in pictures.items():
        answers = [right for both in some.values() for right in both]
        scores[name] = 100 * (sum(answers) / len(answers) + sum(map(all, some.values())) / len(some))
    cognition = sum(score for name, score in scores.items() if name in COGNITION)
    return {"by_category": scores, "cognition": cognition, "perception": sum(scores.values()) - cognition}


def hallusion_sets(row: dict) -> dict:
    """Shares of questions, of questions over all figures and of figures over all questions that are all right."""
    groups = {"aAcc": defaultdict(list), "qAcc": defaultdict(list), "fAcc": defaultdict(list)}
    for place, item in enumerate(row["items"]):
        right = yesno.hallusion(item["model_prediction"]) == ("yes" if item["gt_answer"] == "1" else "no")
        group = item["category"], item["subcategory"], item["set_id"]
        groups["aAcc"][place].append(right)
        groups["qAcc"][*group, item["question_id"]].append(right)
        groups["fAcc"][*group, item["figure_id"]].append(right)
    return {name: sum(map(all, parts.values())) / len(parts) for name, parts in groups.items()}


def mmstar_sets(row: dict) -> dict:
    parts = defaultdict(list)
    for item in row["items"]:
        parts[item["l2_category"]].append(item["score"])
    return {"average": sum(sum(part) / len(part) for part in parts.values()) / len(parts)}


def choices(row: dict) -> dict:
    text, options = row["pred"], row["options"]
    return {
        "extract_mcq": choice.find_letter(text, list(options)),
        "mmbench_prefetch": choice.mmbench_prefetch(text, options),
        "vlmevalkit_prefetch": choice.vlmevalkit_letter(text, options),
        "mmmu_parse": mmmu.mmmu_choice(text, options),
        "ai2d_filter": choice.ai2d_answer(text),
        "seed_first_char": choice.seed_letter(text),
        "mmstar_if_gt": {letter: choice.mmstar(text, letter) for letter in options},
        "ai2d_score_if_gt": {letter: choice.ai2d(text, letter) for letter in options},
    }


def mmbench_circular(row: dict) -> dict:
    return {
        "hit_lmms_static": choice.circular_hit(row["items"], choice.mmbench_letter),
        "hit_vlmevalkit_exact": choice.circular_hit(row["items"], choice.vlmevalkit_letter),
    }


def scienceqa(row: dict) -> dict:
    pred, letter = row["pred"], "ABCDE"[row["answer_index"]]
    return {
        "score": choice.scienceqa_lmms(pred, letter),
        "llava_parsed": choice.scienceqa_letter(pred),
        "score_llava": float(choice.scienceqa_llava(pred, row["n_choices"]) == letter),
    }


def videos(row: dict) -> dict:
    """VLMEvalKit's rule for MVBench gives whether each letter would be right; that several would be is none here."""
    text, options, fitting = row["pred"], row["options"], row["mvbench_vlmevalkit"]
    letter = video.mvbench_vlmevalkit(text, options)
    return {
        "mvbench_lmms": video.mvbench_lmms(text),
        "longvideobench_lmms": video.first_letter(text, "ABCDE"),
        "egoschema_lmms": video.egoschema_lmms(text, options),
        "videomme_vlmevalkit": video.first_letter(text, "ABCD", video.VLMEVALKIT_PHRASES),
        "longvideobench_vlmevalkit": video.first_letter(text, "ABCDE", video.VLMEVALKIT_PHRASES),
        "mvbench_vlmevalkit": [letter] if letter else fitting if len(fitting) > 1 else [],
    }


CHECKS = {
    "anls": lambda row: {"score": short.anls(row["pred"], row["answers"])},
    "chartqa": lambda row: {"score": short.relaxed_accuracy(row["pred"], row["answer"])},
    "gqa": gqa,
    "hallusion_sets": hallusion_sets,
    "mcq_parse": choices,
    "mmbench_circular": mmbench_circular,
    "mme_parse": lambda row: {"parsed": yesno.mme(row["pred"])},
    "mme_sets": mme_sets,
    "mmmu_open": lambda row: {
        "parsed": mmmu.mmmu_open(row["pred"]), "score": mmmu.mmmu_open_score(row["pred"], row["answer"])
    },
    "mmstar_sets": mmstar_sets,
    "ocrbench": lambda row: {"score": short.ocrbench(row["pred"], row["answer"], row["dataset"])},
    "pope_parse": pope_parse,
    "pope_sets": pope_sets,
    "realworldqa": lambda row: {"score": short.realworldqa(row["pred"], row["answer"])},
    "scienceqa": scienceqa,
    "textvqa": textvqa,
    "video_parse": videos,
    "vizwiz": lambda row: {"score": vqa.textvqa_accuracy(row["pred"], row["answers"])},
    "vqa_normalize": normal_forms,
    "vqav2": vqav2,
}  # fmt: skip


def values(where: str, value: object) -> dict[str, object]:
    """The single values in nested dicts and lists, by their place."""
    if not isinstance(value, dict | list):
        return {where: value}
    named = value.items() if isinstance(value, dict) else enumerate(value)
    return {place: one for name, part in named for place, one in values(f"{where}.{name}", part).items()}


def same(got: object, expected: object) -> bool:
    """Equal, numbers within 1e-9."""
    if isinstance(got, int | float) and isinstance(expected, int | float):
        return math.isclose(got, expected, rel_tol=0, abs_tol=1e-9)
    return got == expected


def pairs(file: Path) -> dict[str, tuple[object, object]]:
    """All values of a golden file, by their place: what we compute, and what is expected."""
    assert file.stem in CHECKS, f"no check for {file}"
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        got = CHECKS[file.stem](row)
        expected = {name: value for name, value in row.items() if name not in GIVEN}
        assert expected, f"{row['id']} expects nothing"
        mine = values(row["id"], {name: value for name, value in got.items() if name in row})
        theirs = values(row["id"], expected)
        assert set(mine) == set(theirs), f"{row['id']}: {set(mine) ^ set(theirs)} on one side only"
        found |= {place: (mine[place], theirs[place]) for place in theirs}
    assert found, f"{file} holds no row"
    return found


FOLDERS = [root / "metrics" for root in roots() if (root / "metrics").is_dir()]
FILES = [file for folder in FOLDERS for file in sorted(folder.rglob("*")) if is_data(file)]
needs_files = pytest.mark.skipif(
    not FOLDERS, reason=f"no folder metrics in {[str(root) for root in roots()]}; VTC_GOLDEN_DIR says where to look"
)


@needs_files
@pytest.mark.parametrize("file", FILES or [None], ids=lambda file: file.stem if file else "none")
def test_metrics(file):
    """Each value of each row is what the benchmark's own scorer gave."""
    assert not {place: pair for place, pair in pairs(file).items() if not same(*pair)}


@needs_files
@pytest.mark.parametrize("folder", FOLDERS or [None], ids=lambda folder: folder.parent.name if folder else "none")
def test_all_values_are_compared(folder):
    """Every metric has its file, and together they hold the number of values that they should."""
    files = [file for file in FILES if folder in file.parents]
    missing = set(CHECKS) - {file.stem for file in files}
    assert missing <= (set() if folder.parent == ROOT / "tests" / "golden" else LATER)
    count = sum(len(pairs(file)) for file in files)
    print(f"{count} values in {len(files)} files")
    assert count > LEAST


def test_a_wrong_value_is_noticed(tmp_path):
    """A wrong value, a field without a check, a file without a check, a row without a result and no row at all."""
    file = tmp_path / "anls.jsonl"
    row = {"id": "x", "pred": "abcd", "answers": ["abef"], "score": 0.5}
    for text, right in ((row, True), (row | {"score": 0.5 + 1e-8}, False), (row | {"score": None}, False)):
        file.write_text(json.dumps(text), encoding="utf-8")
        assert [same(*pair) for pair in pairs(file).values()] == [right]
    del row["score"]
    for text in (json.dumps(row | {"points": 1}), json.dumps(row), ""):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(AssertionError):
            pairs(file)
    with pytest.raises(AssertionError, match="no check"):
        pairs(file.with_name("unheard_of.jsonl"))
