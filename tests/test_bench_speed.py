"""`vtc bench`: complete rows, resuming, comparing, break-even, the command from end to end, wrong options refused."""

import copy
import io
import json
from contextlib import redirect_stdout

import pytest
import torch

from tests.helpers import model_of
from tests.test_cli import run
from vtc.bench.results import Results, check_comparable, read
from vtc.bench.rounds import SpeedCase, noisy, ratios
from vtc.bench.speed_rows import SPEED, break_even, break_evens, verdict
from vtc.bench.speed_table import lines
from vtc.cli import main
from vtc.core.errors import ConfigError

SMALL = ("--prompt-lengths", "9", "--new-tokens", "3", "--rounds", "2", "--warmup", "0", "--device", "cpu")
TIMES = (
    "vision",
    "observing",
    "selection",
    "prefill",
    "ttft",
    "decode",
    "total",
    "ttft_cpu",
    "decode_cpu",
    "total_cpu",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The family's miniature as a folder that save_pretrained made."""
    path = tmp_path_factory.mktemp("model") / "small"
    model = copy.deepcopy(model_of("llava")).float()
    model.generation_config = type(model.generation_config)()
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """A finished benchmark of three strategies at two sizes, and its data."""
    out = tmp_path_factory.mktemp("bench") / "out"
    options = ("--strategy", "hiprune,fastv,visiondrop", "--visual-tokens", "64,128", "--batch-sizes", "2", *SMALL)
    with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stopped:
        main(["bench", "--model", str(folder), *options, "--output", str(out)])
    assert stopped.value.code == 0
    return out, json.loads((out / "results.json").read_text())


def test_rows_are_complete(done):
    """Settings, environment, every row with raw rounds, medians that are theirs, ratios taken in each round."""
    out, data = done
    assert data["schema"] == "vtc.bench/1"
    assert data["settings"].items() >= {"model": "small", "attention": "sdpa", "dtype": "float32", "rounds": 2}.items()
    assert data["environment"]["torch"]
    assert data["environment"]["threads"] == torch.get_num_threads()
    keys = [(row["strategy"], row["tokens"]["visual"]) for row in data["rows"]]
    assert keys == [(name, n) for n in (64, 128) for name in ("hiprune", "fastv", "visiondrop")]
    for row in data["rows"]:
        merges = row["strategy"] == "visiondrop"
        assert set(row["systems"]) == {"baseline", "strategy"} | ({"oracle"} if not merges else set())
        assert ("missing" if merges else "difference") in row["oracle"]
        assert row["tokens"]["average"] == pytest.approx(row["tokens"]["visual"] / 4, rel=0.15)
        for name, system in row["systems"].items():
            rounds = row["rounds"][name]
            assert set(rounds) == set(TIMES)
            for part in TIMES:
                assert len(rounds[part]) == 2
                assert min(rounds[part]) == system[part]["min"] <= system[part]["median"] <= system[part]["max"]
            assert 0 < system["ttft"]["median"] < system["total"]["median"]
            assert system["decode"]["min"] > 0
            assert (system["selection"]["median"] > 0) == (name == "strategy")
            assert system["selection"]["min"] >= system["observing"]["min"]
            assert 0 < system["kv_bytes"] < system["peak_bytes"]
        mine, base = row["rounds"]["strategy"]["ttft"], row["rounds"]["baseline"]["ttft"]
        expected = sorted(a / b for a, b in zip(mine, base, strict=True))
        assert row["ratios"]["ttft/baseline"]["median"] == pytest.approx(sum(expected) / 2)
        assert row["ratios"]["kv/baseline"]["median"] < 0.6
        assert ("ttft/oracle" in row["ratios"]) == (not merges)
        assert (row["scoring"] is not None) == (row["strategy"] == "hiprune")
        if row["scoring"] is not None:
            assert row["scoring"]["observed"] == 2
            assert row["scoring"]["median"] > 0
    for name in ("ttft.png", "break_even.png"):
        assert (out / name).stat().st_size > 5000


def test_oracle_holds_as_much_as_the_strategy(done):
    """The same KV cache; peaks and steps have an order of magnitude in common."""
    for row in done[1]["rows"]:
        if "oracle" in row["systems"]:
            assert row["systems"]["oracle"]["kv_bytes"] == row["systems"]["strategy"]["kv_bytes"]
            assert row["oracle"]["difference"] <= 1e-4


def test_resume(capsys, done, folder):
    """The same command measures nothing again; more rows are added; other settings are refused unless started anew."""
    out, data = done
    command = ["bench", "--model", folder, "--visual-tokens", "64", "--batch-sizes", "2", "--output", out]
    before = (out / "results.json").read_text()
    code, shown, err = run(capsys, *command, "--strategy", "hiprune,fastv", *SMALL)
    assert (code, err) == (0, "")
    assert (out / "results.json").read_text() == before
    assert "no oracle" in shown
    assert "break-even" in shown
    code, _, err = run(capsys, *command, "--strategy", "hiprune,random", *SMALL)
    assert code == 0
    assert "1/1 random 0.25" in err
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert rows[:-1] == data["rows"]
    assert rows[-1]["strategy"] == "random"
    code, _, err = run(capsys, *command, *SMALL[:4], "--rounds", "3", "--warmup", "0")
    assert code == 2
    assert "rounds 2 and 3" in err
    assert "--overwrite" in err
    assert len(read(out, SPEED)["rows"]) == 7


def test_a_strategy_that_changed_is_measured_again(tmp_path, done):
    """A row counts as done only for the same resolved strategy."""
    results = Results(SPEED, tmp_path, {"a": 1}, {"b": 2})
    case = SpeedCase("x.yaml", "0.25", 1, 64, 576)
    row = {"strategy": "x.yaml", "keep": "0.25", "batch": 1, "prompt": 64, "asked": 576, "resolved": {"alpha": 0.1}}
    row = {**done[1]["rows"][0], **row}
    results.add(row)
    again = Results(SPEED, tmp_path, {"a": 1}, {"b": 2})
    assert again.has(case.key, {"alpha": 0.1})
    assert not again.has(case.key, {"alpha": 0.2})
    assert again.rows == []
    assert Results(SPEED, tmp_path, {"a": 2}, {"b": 2}, overwrite=True).rows == []
    with pytest.raises(ConfigError, match="a 1 and 2; b 2 and 3"):
        Results(SPEED, tmp_path, {"a": 2}, {"b": 3})


def test_compare(capsys, done):
    """A result with itself; every difference is named when there is one."""
    out, data = done
    code, shown, _ = run(capsys, "bench", "compare", out, out)
    assert code == 0
    assert shown.count("visiondrop") == 4
    other = copy.deepcopy(data)
    for row in other["rows"]:
        row["strategy"], row["keep"] = "other", "0.1"
    check_comparable(SPEED, data, other)
    other["settings"]["dtype"], other["environment"]["gpu"] = "bfloat16", "X100"
    for row in other["rows"]:
        row["batch"] = 8
    with pytest.raises(ConfigError) as error:
        check_comparable(SPEED, data, other)
    for words in ("dtype float32 and bfloat16", "gpu None and X100", "batch sizes [2] and [8]", "possible"):
        assert words in str(error.value)
    other = copy.deepcopy(data)
    other["rows"] = [row for row in other["rows"] if (row["strategy"], row["asked"]) != ("x", 64)][:3]
    with pytest.raises(ConfigError, match=r"visual tokens \[64, 128\] and \[64\]"):
        check_comparable(SPEED, data, other)


def test_a_clip(capsys, tmp_path):
    """A row with its oracle; the number of frames is one of the settings."""
    model = copy.deepcopy(model_of("qwen3_vl")).float()
    model.generation_config = type(model.generation_config)()
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ("bench", "--model", tmp_path / "model", "--strategy", "divprune", "--visual-tokens", "60", *SMALL[2:])
    command = (*command, "--prompt-lengths", "20", "--output", out)
    capsys.readouterr()
    assert run(capsys, *command, "--frames", "6")[0] == 0
    data = json.loads((out / "results.json").read_text())
    (row,) = data["rows"]
    assert data["settings"]["frames"] == 6
    assert row["tokens"] == {"visual": 60, "entered": 15, "average": 15.0, "images": 1}
    assert row["oracle"]["difference"] <= 1e-4
    assert set(row["systems"]) == {"baseline", "strategy", "oracle"}
    for frames, words in ((("--frames", "8"), "frames 6 and 8"), ((), "frames 6 and None")):
        code, _, err = run(capsys, *command, *frames)
        assert (code, words in err) == (2, True), err


@pytest.mark.parametrize(
    "points, tokens, words",
    [
        ([(576, 0.5), (64, 1.5), (144, 0.9)], 64 + 80 * 0.5 / 0.6, "at 131"),
        ([(64, 0.9), (576, 0.5)], None, "below 64, the smallest measured"),
        ([(64, 1.3), (576, 1.1)], None, "never within 64 to 576"),
        ([(64, 0.9), (144, 1.2), (576, 0.8)], 144 + 432 * 0.2 / 0.4, "at 360"),
        ([(64, 1.0), (576, 0.8)], None, "below 64, the smallest measured"),
        ([], None, "nothing was measured"),
    ],
)
def test_break_even(points, tokens, words):
    """Interpolated where the ratio comes below 1 for good."""
    found = break_even(points)
    assert found[0] == (None if tokens is None else pytest.approx(tokens))
    assert found[1] == words


def test_break_evens_are_per_strategy():
    """One for each strategy, keep, batch and prompt with several sizes."""

    def row(strategy, visual, ratio):
        medians = {"ttft/baseline": {"median": ratio}}
        counts = {"visual": visual}
        return {"strategy": strategy, "keep": "0.5", "batch": 1, "prompt": 9, "tokens": counts, "ratios": medians}

    found = break_evens([row("a", 64, 1.2), row("b", 64, 0.9), row("a", 128, 0.8)])
    assert [(entry["strategy"], entry["tokens"]) for entry in found] == [("a", 96)]


@pytest.mark.parametrize("most, noisy", [(1.2, False), (2.0, True)])
def test_noise_is_said(most, noisy):
    """Rounds of the baseline that differ a lot are named under the table."""
    row = {
        "batch": 1,
        "tokens": {"visual": 64},
        "oracle": {"difference": 0.0},
        "scoring": None,
        "prompt": 9,
        "strategy": "a",
        "keep": "1",
    }
    row |= {"systems": {"baseline": {"ttft": {"min": 1.0, "median": 1.1, "max": most}}}}
    row |= {"ratios": {"ttft/baseline": {"median": 0.5}}}
    assert [line.startswith("noisy: with 64 visual tokens") for line in lines([row])] == [True] * noisy


def row_of(clock: float, cpu: float | None, **more) -> dict:
    """A row with one ratio, by the clock and of CPU time."""
    system = {"ttft": {"min": 1.0, "median": 1.1, "max": 1.2}}
    both = {"ttft/baseline": clock, **({} if cpu is None else {"ttft_cpu/baseline": cpu})}
    row = {"strategy": "a", "keep": "1", "batch": 1, "prompt": 9, "tokens": {"visual": 64}, "scoring": None}
    row |= {"oracle": {"difference": 0.0}, "systems": {"baseline": system}}
    return {**row, "ratios": {key: {"median": value} for key, value in both.items()}, **more}


@pytest.mark.parametrize(
    "clock, cpu, value", [(1.235, 0.565, (0.565, True)), (0.57, 0.565, (0.57, False)), (1.2, None, (1.2, False))]
)
def test_cpu_time_decides_where_the_clock_disagrees(clock, cpu, value):
    """And both are said."""
    row = row_of(clock, cpu)
    assert verdict(row, "ttft/baseline") == value
    said = [line for line in lines([row]) if "of CPU time" in line]
    assert len(said) == value[1]
    assert verdict(row, "ttft/oracle") == (None, False)


@pytest.mark.parametrize(
    "times, noise", [([1, 1.1, 1.1, 1.1, 9], False), ([1, 1, 1.3, 1.3, 1.3], True), ([1, 2, 3, 4], False)]
)
def test_noise_is_that_of_the_middle_half(times, noise):
    """One slow round is none; of too few nothing is said; a GPU has the clock alone."""
    assert noisy({"ttft": [1.0] * 5, "ttft_cpu": times}) == noise
    assert noisy({"ttft": times}) == noise


def test_a_noisy_row_goes_on(monkeypatch):
    """Up to twice the rounds, and no further once it is calm."""
    from vtc.bench.rounds import measure
    from vtc.bench.subject import Subject, _prepare

    model = copy.deepcopy(model_of("llava")).float()
    _prepare(model)
    for calm, expected in ((None, 6), (4, 4)):
        seen = []

        def is_noisy(baseline, calm=calm):
            return len(baseline["ttft"]) != calm

        monkeypatch.setattr("vtc.bench.rounds.noisy", is_noisy)
        row = measure(
            Subject(model, None), SpeedCase("hiprune", "0.25", 1, 9, 64), 2, 3, 0, "auto", {}, 0,
            advance=lambda seen=seen: seen.append(1),
        )  # fmt: skip
        assert (len(row["rounds"]["oracle"]["ttft"]), len(seen), row["noisy"]) == (expected, 3, calm is None)


def test_a_row_that_stays_noisy_has_an_exit_code(capsys, monkeypatch, tmp_path, folder):
    """Of its own; the results are there."""
    monkeypatch.setattr("vtc.bench.rounds.noisy", lambda baseline: True)
    code, out, _ = run(capsys, "bench", "--model", folder, "--visual-tokens", "64", *SMALL, "--output", tmp_path)
    assert (code, "still noisy after twice the rounds" in " ".join(out.split())) == (3, True)
    assert (tmp_path / "results.json").exists()


def test_ratios_are_paired():
    """A machine that slows down between rounds does not change them."""
    base = {"ttft": [1.0, 2.0, 8.0], "decode": [1.0, 1.0, 1.0], "total": [1.0, 1.0, 1.0]}
    mine = {"ttft": [0.5, 1.0, 4.0], "decode": [1.0, 1.0, 1.0], "total": [1.0, 1.0, 1.0]}
    spaces = {name: {"peak_bytes": n, "kv_bytes": n} for name, n in (("baseline", 4), ("strategy", 1))}
    found = ratios({"baseline": base, "strategy": mine}, spaces)
    assert found["ttft/baseline"] == {"median": 0.5, "min": 0.5, "max": 0.5}
    assert found["peak/baseline"]["median"] == 0.25
    assert "ttft/oracle" not in found


BAD = {
    "nothing": ([], "--preset and --model"),
    "preset": (["--preset", "llava"], "unknown preset 'llava'"),
    "strategy": (["--preset", "tiny", "--strategy", "hiprun"], "did you mean 'hiprune'"),
    "keep": (["--preset", "tiny", "--keep", "1.5"], "keep=1.5 is out of range"),
    "everything": (["--preset", "tiny", "--keep", "1.0"], "possible: keep below 1.0"),
    "question": (["--preset", "tiny", "--strategy", "mmtok"], "mmtok reads the question"),
    "clip": (["--preset", "tiny", "--strategy", "cdpruner", "--set", "relevance=clip"], "cdpruner reads the question"),
    "eager": (["--preset", "tiny", "--attention", "eager"], "--attention 'eager'"),
    "attention": (["--preset", "tiny", "--attention", "x"], "--attention 'x' is not there"),
    "kernels": (["--preset", "tiny", "--kernels", "fast"], "--kernels 'fast' is unknown"),
    "list": (["--preset", "tiny", "--visual-tokens", "64,,5"], "--visual-tokens '64,,5' has an empty entry"),
    "visual": (["--preset", "qwen2-vl-7b", "--visual-tokens", "64", "--prompt-lengths", "2"], "--prompt-lengths 2"),
    "tokens": (["--preset", "tiny", "--new-tokens", "1"], "--new-tokens 1"),
    "frames": (["--preset", "tiny", "--frames", "0"], "--frames 0"),
    "no clips": (["--preset", "tiny", "--frames", "8"], "llava takes no clips"),
    "device": (["--preset", "tiny", "--device", "tpu"], "--device 'tpu' is not there"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(capsys, tmp_path, name):
    """One line, exit code 2, nothing written; no weights are made for it."""
    options, words = BAD[name]
    code, _, err = run(capsys, "bench", *options, "--output", tmp_path / "out")
    assert code == 2
    assert words in err
    assert "possible" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_files_are_not_results(capsys, tmp_path):
    """Neither for --output nor for compare."""
    (tmp_path / "results.json").write_text('{"schema": "vtc.bench.selection/1"}')
    for command in (("compare", tmp_path, tmp_path), ("--preset", "tiny", "--output", tmp_path)):
        code, _, err = run(capsys, "bench", *command)
        assert code == 2
        assert "vtc.bench.selection/1" in err
