"""`vtc bench --compiled`: each system decodes in compiled steps of its own, which are compiled in the warm-up alone."""

import copy
import io
import json
import logging
from contextlib import redirect_stdout

import pytest
import torch
import transformers

import vtc
from tests.helpers import model_of
from tests.test_cli import run
from vtc.bench.prompts import inputs_of, pictures
from vtc.bench.subject import _prepare
from vtc.bench.systems import System, check_compiler, compiled, graphs
from vtc.cli import main
from vtc.core.errors import ConfigError
from vtc.patching import find_family

SMALL = ("--prompt-lengths", "9", "--new-tokens", "4", "--rounds", "2", "--device", "cpu", "--visual-tokens", "64")


@pytest.fixture
def untranslated(monkeypatch):
    """Graphs are made, and run as they are; pytest would keep every line of the compiler's trace."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    config = transformers.CompileConfig
    monkeypatch.setattr("vtc.bench.speed.check_compiler", lambda device: None)
    monkeypatch.setattr("transformers.CompileConfig", lambda **given: config(backend="eager", **given))


@pytest.fixture
def model():
    """A LLaVA of float32."""
    result = copy.deepcopy(model_of("llava")).float()
    _prepare(result)
    return result


def system(model, strategy: str) -> System:
    family = find_family(model)
    inputs = inputs_of(family, pictures(family, 64, None), 9, 1)
    return System("strategy", family, inputs, lambda own: vtc.patched(own.model, strategy, 0.25), vtc.report)


def test_systems_of_their_own(untranslated, model):
    """Model objects of their own on the same weights, whose answers are those of eager decoding; nothing is left."""
    base = system(model, "hiprune")
    base = System("baseline", base.family, base.inputs)
    before = graphs()
    with compiled([base, system(model, "hiprune")]) as (stock, pruned):
        assert len({id(model), id(stock.model), id(pruned.model)}) == 3
        assert [p.data_ptr() for p in pruned.model.parameters()] == [p.data_ptr() for p in model.parameters()]
        found = [s.generate(6).sequences for s in (stock, pruned, stock, pruned)]
        assert graphs() - before == 2
        assert pruned.report().average_share < 1
        with pytest.raises(vtc.VtcError):
            vtc.report(stock.model)
    assert torch.equal(found[0], base.generate(6).sequences)
    with vtc.patched(model, "hiprune", 0.25):
        assert torch.equal(found[1], base.generate(6).sequences)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_marks_are_those_of_each_forward(model):
    """One mark a token, in order, and generate() writes what it writes without them."""
    clock, cpu = System("baseline", find_family(model), system(model, "hiprune").inputs).ends(5)
    assert (len(clock), len(cpu)) == (5, 5)
    assert (clock, cpu) == (sorted(clock), sorted(cpu))


def test_a_model_that_cannot_be_copied(model):
    """A module whose own forward was replaced would lead back to the original."""
    layer = model.model.language_model.layers[0]
    layer.forward = lambda *args, **kwargs: type(layer).forward(layer, *args, **kwargs)
    with pytest.raises(ConfigError, match="--compiled needs"), compiled([system(model, "hiprune")]):
        pass


def test_the_command(untranslated, tmp_path):
    """Rows say that steps were compiled; a line gives the rates. Without an oracle where layers need own masks."""
    path, out = tmp_path / "small", tmp_path / "out"
    model = copy.deepcopy(model_of("llava")).float()
    model.generation_config = type(model.generation_config)()
    model.save_pretrained(path)
    screen = io.StringIO()
    command = ["bench", "--model", str(path), "--strategy", "hiprune,fastv", "--compiled", *SMALL, "--output", str(out)]
    with redirect_stdout(screen), pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    data = json.loads((out / "results.json").read_text())
    assert data["settings"]["decoding"] == "static cache, compiled steps"
    hiprune, fastv = data["rows"]
    assert (hiprune["compiled"], set(hiprune["systems"])) == (True, {"baseline", "strategy", "oracle"})
    assert "decode/oracle" in hiprune["ratios"]
    assert "masks of their own" in fastv["oracle"]["missing"]
    said = " ".join(screen.getvalue().split())
    assert "hiprune 0.25, 64 visual tokens, batch 1: compiled steps write" in said
    assert "of its time)" in said


def test_the_compiler_is_not_timed(capsys, tmp_path):
    """Without a warm-up the first round would compile."""
    code, _, err = run(capsys, "bench", "--preset", "tiny", "--compiled", "--warmup", "0", "--output", tmp_path)
    assert (code, "--warmup 0 would time the compiler" in err) == (2, True)


@pytest.mark.parametrize(
    "place, compiler, words",
    [("/a place/torch.py", "cc", "a path with a space"), ("/torch.py", None, "compiler 'g++'")],
)
def test_a_compiler_that_cannot_work(capsys, tmp_path, monkeypatch, place, compiler, words):
    """One line before anything is built; a GPU's is torch's own."""
    monkeypatch.setattr("torch.__file__", place)
    monkeypatch.setattr("shutil.which", lambda name: compiler)
    monkeypatch.delenv("CXX", raising=False)
    options = ("--preset", "tiny", "--compiled", "--device", "cpu", "--output", tmp_path)
    code, _, err = run(capsys, "bench", *options)
    assert (code, err.count("\n"), words in err) == (2, 1, True)
    check_compiler(torch.device("cuda"))


def test_a_step_that_is_compiled_in_a_round_is_refused(untranslated, model, monkeypatch):
    """Rounds that compile would count the compiler's time."""
    from vtc.bench.rounds import SpeedCase, measure
    from vtc.bench.subject import Subject

    monkeypatch.setattr("vtc.bench.rounds.graphs", iter(range(100)).__next__)
    with pytest.raises(ConfigError, match="compiled anew in round 1"):
        measure(Subject(model, None), SpeedCase("hiprune", "0.25", 1, 9, 64), 4, 2, 1, "auto", {}, 0, True)
