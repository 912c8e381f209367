"""Methods by the names that earlier versions wrote: what names them loads under today's names, which is logged once."""

import json
import logging

import pytest

import vtc
from vtc.core import registry
from vtc.core.errors import ConfigError
from vtc.core.registry import FORMER, current
from vtc.eval.results.saved import METHOD, RUN, SUMMARY
from vtc.io.files import read_json
from vtc.strategies import METHODS
from vtc.strategies.base import Stage

BEST = """
description: 'Best accuracy@0.11 (0.978571) of sweep demo: demo, demo, split of the task.'
stages:
- {method: todre_encoder, keep: 0.11, scope: per_image, rounding: ceil, positions: compact, layer: -1, objective: sum}
- {method: todre, positions: keep, layer: 0.875, tau: 0.1}
families:
  qwen2_vl: {todre_encoder.keep: 0.2}
"""


@pytest.fixture(autouse=True)
def said(monkeypatch, caplog):
    """The lines that are logged, none of which was before."""
    monkeypatch.setattr(registry, "_SAID", set())
    caplog.set_level(logging.WARNING, "vtc")
    return caplog


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_saved_strategy_loads_under_the_new_name(tmp_path, said, family):
    """In a stage, in a family's section and among overrides; the same as if it had been written today."""
    (tmp_path / "old.yaml").write_text(BEST, encoding="utf-8")
    (tmp_path / "new.yaml").write_text(BEST.replace("todre_encoder", "todre_projector"), encoding="utf-8")
    old = vtc.load_strategy(tmp_path / "old.yaml", family, **{"todre_encoder.objective": "max"})
    assert said.messages == ["vtc: method todre_encoder is called todre_projector now"]
    new = vtc.load_strategy(tmp_path / "new.yaml", family, **{"todre_projector.objective": "max"})
    assert old.dump() == new.dump()
    assert old.dump()["stages"][0] | {"method": "todre_projector", "objective": "max"} == old.dump()["stages"][0]
    assert old.stages[0].keep == (0.2 if family == "qwen2_vl" else 0.11)
    assert len(said.records) == 1


def test_results_are_read_under_the_new_name(tmp_path, said):
    """A run, and the summary of a folder; other stages and what has none stay as they are."""
    stages = [{"method": "visiondrop_encoder", "keep": 0.25}, {"method": "visiondrop"}, {"seed": 1}]
    method = {"name": "visiondrop", "kind": "vtc", "keep": None, "budget": None, "resolved": {"stages": stages}}
    assert METHOD(method | {"resolved": None}, "")["resolved"] is None
    run = {
        "schema": "vtc.eval.run/3", "name": "visiondrop", "created": "", "model": {}, "method": method, "notes": [],
        "seeds": {}, "generation": {"batch_size": 1}, "kernels": None, "git": None, "versions": {}, "tasks": {},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    summary = {"schema": "vtc.eval.results/3", "runs": [run]}
    (tmp_path / "results.json").write_text(json.dumps(summary), encoding="utf-8")
    read = [read_json(tmp_path / "run.json", RUN, ""), *read_json(tmp_path / "results.json", SUMMARY, "")["runs"]]
    new = [{**stages[0], "method": "visiondrop_projector"}, *stages[1:]]
    assert [one["method"]["resolved"]["stages"] for one in read] == [new, new]
    assert len(said.records) == 1


@pytest.mark.parametrize("key", ["hiprune", "hiprune.keep", "keep", "todre_encoders", 5, None, ["todre_encoder"]])
def test_other_keys_stay(key, said):
    assert current(key) is key
    assert not said.records


def test_former_names_lead_somewhere_and_are_not_given_away():
    """Each is another than the registered names, and no method from outside can take it."""
    assert set(FORMER.values()) <= set(METHODS)
    assert not set(FORMER) & set(METHODS)
    for name in FORMER:
        with pytest.raises(ConfigError, match="has a name that vtc uses"):
            METHODS.register(name)(type("Taken", (Stage,), {"select": lambda self, context, encoder: None}))
