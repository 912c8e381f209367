"""Strategies whose stages are other strategies; every file is read once."""

from collections import Counter
from pathlib import Path

import pytest

import vtc
from tests.helpers import model_of, refused
from tests.test_compositions import comes_back, families
from vtc.config.resolve import resolve
from vtc.config.source import DEEPEST, MOST
from vtc.io import plain_yaml


def write(folder: Path, **texts: str) -> Path:
    """YAML files by name; the path of the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(texts))}.yaml"


def referring(*parts: object, **top: object) -> dict:
    """A strategy whose stages are others, each a name or a mapping."""
    return {**top, "stages": [part if isinstance(part, dict) else {"strategy": part} for part in parts]}


READ = {
    "hiprune": {"hiprune.yaml": 1},
    "hiprune_transprune": {"hiprune_transprune.yaml": 1, "hiprune.yaml": 1, "transprune.yaml": 1},
    "hiprune+transprune": {"hiprune.yaml": 1, "transprune.yaml": 1},
    "hiprune+fastv+fastv": {"hiprune.yaml": 1, "fastv.yaml": 1},
}


@pytest.mark.parametrize("strategy", READ)
def test_patching_reads_a_file_once(strategy, monkeypatch):
    """Also where it stands several times in a composition."""
    read, counts = plain_yaml.read_text, Counter()

    def counted(file, *args):
        counts[file.name] += 1
        return read(file, *args)

    monkeypatch.setattr(plain_yaml, "read_text", counted)
    with vtc.patched(model_of("llava"), strategy):
        assert counts == READ[strategy]


@families
def test_a_stage_that_is_a_strategy(family, tmp_path):
    """It brings its stages with what it says for a family; what stands beside it overrides that, as keywords do."""
    config = resolve(referring({"strategy": "hiprune", "keep": 0.5, "alpha": 0.3}, "fastv"), family)
    first, second = resolve("hiprune", family, keep=0.5, alpha=0.3), resolve("fastv", family)
    assert config.dump()["stages"][0]["keep"] == 0.5
    assert (config.projector.stage, config.projector.options()) == (first.projector.stage, first.projector.options())
    assert config.decoder == second.decoder
    assert config.description == resolve("hiprune+fastv").description
    comes_back(config, tmp_path / "again.yaml", family)


def test_options_of_a_strategy_that_refers():
    """A keep at the top is of the whole; positions at the top hold where the part has none; sections and overrides
    reach the stages of the parts; one stage's keep is then its own."""
    whole = resolve(referring("hiprune", "fastv", keep=0.3, positions="compact"))
    assert (whole.keep, [s.keep for s in whole.stages]) == (0.3, [None, None])
    assert [s.positions for s in whole.stages] == ["compact", "keep"]
    assert resolve(referring("hiprune", "fastv"), keep=0.3).keep == 0.3
    section = referring("hiprune", "fastv", families={"llava": {"alpha": 0.4, "fastv.K": 5}})
    assert resolve(section, "llava").projector.stage.alpha == 0.4
    assert resolve(section, "llava").decoder[0].stage.K == 5
    assert resolve(section).projector.stage.alpha == 0.1
    assert [s.keep for s in resolve(section, **{"fastv.keep": 0.6}).stages] == [0.25, 0.6]
    assert resolve(referring("hiprune")).keep == 0.25


def test_files_that_refer_to_files(tmp_path):
    """By paths from where they are; what is nested is flat in the end."""
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", half="stages: [{strategy: uniform, keep: 0.5}, {method: fastv}]")
    path = write(tmp_path, whole="stages: [{strategy: inner/half.yaml}, {strategy: pyramiddrop}]")
    assert [s.method for s in resolve(path).stages] == ["uniform", "fastv", "pyramiddrop"]
    assert [s.keep for s in resolve(path).stages] == [0.5, None, None]


def test_what_cannot_be_referred_to(tmp_path):
    """Circles, chains without end, unknown names, wrong stages; always one line."""
    circle = write(tmp_path, a="stages: [{strategy: b.yaml}]", b="stages: [{strategy: ./a.yaml}]")
    refused(lambda: resolve(circle), "refers to itself", "a.yaml -> b.yaml -> a.yaml")
    itself = write(tmp_path, c="stages: [{strategy: c.yaml}]")
    refused(lambda: resolve(itself), "'c.yaml' refers to itself (c.yaml -> c.yaml)")
    chain = {f"d{i}": f"stages: [{{strategy: d{i + 1}.yaml}}]" for i in range(DEEPEST)}
    last = {f"d{DEEPEST}": "stages: [{method: fastv}]"}
    path = write(tmp_path, **chain, **last)
    refused(lambda: resolve(path), f"through {DEEPEST} others", f"possible: {DEEPEST - 1} at most")
    assert [s.method for s in resolve(tmp_path / "d1.yaml").stages] == ["fastv"]
    wide = {f"w{i}": f"stages: [{', '.join([f'{{strategy: w{i + 1}.yaml}}'] * 5)}]" for i in range(3)}
    path = write(tmp_path, **wide, w3="stages: [{method: fastv}]")
    refused(lambda: resolve(path), "125 stages", f"possible: {MOST} at most")
    refused(lambda: resolve(referring("hiprun")), "unknown strategy 'hiprun'", "did you mean 'hiprune'")
    refused(lambda: resolve(referring("none.yaml")), "strategy file 'none.yaml' does not exist")
    for stage in ({"strategy": 5}, {"strategy": "hiprune", "method": "fastv"}, {"strategy": ["hiprune"]}):
        refused(lambda stage=stage: resolve({"stages": [stage]}), "stage {", "either 'method', or 'strategy'")
    refused(lambda: resolve(referring({"strategy": "hiprune", "alfa": 1})), "the overrides of 'hiprune'", "'alpha'")
    refused(
        lambda: resolve(referring({"strategy": "hiprune", "keep": 0.5}, keep=0.3)), "keep of its own", "one of them"
    )
    refused(lambda: resolve(referring({"strategy": "visiondrop", "keep": 0.1})), "one keep for 2 stages")


def test_the_scope_of_tiles_is_the_methods():
    """Where images are tiled and nothing says another; DivPrune's tiles compete."""

    def scope(method, family, **top):
        return resolve({"keep": 0.5, "stages": [{"method": method}], **top}, family).projector.scope

    assert [scope("uniform", family) for family in (None, "llava", "llava_next")] == [
        "per_image", "per_image", "per_tile",
    ]  # fmt: skip
    assert scope("divprune", "llava_next") == "per_image"
    assert scope("uniform", "llava_next", scope="per_request") == "per_request"
    assert scope("uniform", "llava_next", families={"llava_next": {"scope": "per_image"}}) == "per_image"
