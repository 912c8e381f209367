"""Evaluation on several processes: the same lines as on one, whoever is killed and whatever goes on."""

import json

import pytest
from PIL import Image

from tests.helpers_checkpoints import save_tiny
from tests.helpers_launch import figures, finish, kill_at, logs, start
from tests.test_golden import roots
from vtc.cli import main

WORDS = ("red", "blue", "a cat", "two dogs")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The real MMBench sample where it is, else invented rows of its form."""
    for root in roots():
        if (root / "realdata" / "mmbench_samples").is_dir():
            return root / "realdata" / "mmbench_samples"
    folder = tmp_path_factory.mktemp("mmbench")
    rows = []
    for i in range(20):
        Image.effect_noise((40 + 7 * i, 90 - 3 * i), 90).save(folder / f"{i}.png")
        options = dict(zip("ABCD", WORDS))
        rows.append({"image": f"{i}.png", "hint": None, "question": f"What is on picture {i}?", "options": options,
                     "answer": "ABCD"[i % 4], "category": WORDS[i % 3], "language": "en"})  # fmt: skip
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", params=["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.full)])
def options(request, data, tmp_path_factory):
    """The options of a run with a tiny random model from a local folder."""
    model = save_tiny(request.param, tmp_path_factory.mktemp("models") / request.param)
    return [
        "--model", str(model), "--strategy", "none,hiprune", "--keep", "0.25", "--tasks", "mmbench_en",
        "--dataset-path", str(data), "--max-new-tokens", "16", "--batch-size", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """The finished run of this process."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.raises(SystemExit) as ended:
        main(["eval", *options, "--output", str(output)])
    assert ended.value.code == 0
    return output


@pytest.mark.full  # test_sweep_workers.py has two processes on one folder in `make test`
def test_two_processes(options, whole, tmp_path):
    """Two processes write the same lines into the same files, byte for byte but for the order, and the same figures."""
    code, out = finish(start(2, [*options, "--output", str(tmp_path)]))
    assert code == 0, out
    assert "none, mmbench_en, process 1 of 2: 10 samples" in out
    assert out.count("task mmbench_en") == 1, "one process prints"
    assert logs(tmp_path) == logs(whole)
    assert figures(tmp_path) == figures(whole)
    assert all(len(lines) == 21 for lines in logs(whole).values())


ONE, THREE = [(1, 4)], [(2, 3), (1, 4), (3, 3)]


@pytest.mark.full  # `make test` has a kill in a sweep, and an interrupted run
@pytest.mark.parametrize("kills", [ONE, THREE], ids=["one", "three"])
def test_kills(options, whole, kills, tmp_path):
    """SIGKILL to so many processes once they have written so many lines, then to the end on two."""
    before = 2
    for processes, more in kills:
        process = start(processes, [*options, "--output", str(tmp_path)])
        before = kill_at(process, tmp_path, before + more, second=processes > 1)
    code, out = finish(start(2, [*options, "--output", str(tmp_path)]))
    assert code == 0, out
    assert logs(tmp_path) == logs(whole)
    assert figures(tmp_path) == figures(whole)
