"""A family and a method of another package are found everywhere, without touching a file of vtc."""

import json
import sys
from pathlib import Path

import pytest

import vtc
from tests.helpers_checkpoints import save_tiny
from tests.helpers_outside import METHOD, nothing_stays, write
from tests.test_cli import run
from vtc.check.contract import CONTRACT
from vtc.config.catalog import support_table
from vtc.patches import FAMILIES
from vtc.vllm import models
from vtc.vllm.capability import table

__all__ = ["nothing_stays"]

FAMILY = '''
"""A model of other people: LLaVA's modules under another name, with classes of their own."""

from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from vtc.core.signals import Encoder
from vtc.patches._preset import Preset
from vtc.patches._tiny import finish
from vtc.patches.llava import Llava


class OtherConfig(LlavaConfig):
    model_type = "outsiders_other"


class OtherForConditionalGeneration(LlavaForConditionalGeneration):
    config_class = OtherConfig


AutoConfig.register("outsiders_other", OtherConfig, exist_ok=True)
AutoModelForImageTextToText.register(OtherConfig, OtherForConditionalGeneration, exist_ok=True)


class Other(Llava):
    """Somebody's own model."""

    name = "outsiders_other"
    model_types = ("outsiders_other",)
    served = "outsiders_package.serving:VtcOtherForConditionalGeneration"
    published = Encoder("outsiders_other", 24, True, tuple(range(24)), 576)
    presets = {"other-small": Preset(lambda: Other.tiny().config, 200_000, "a miniature")}

    @classmethod
    def tiny(cls, **overrides):
        known = super().tiny(**overrides).config.to_dict()
        return finish(OtherForConditionalGeneration(OtherConfig(**{**known, "model_type": "outsiders_other"})))
'''

POINTS = """[vtc.strategies]
tail = outsiders_package.method:Tail
[vtc.families]
outsiders_other = outsiders_package.family:Other
"""


@pytest.fixture(autouse=True)
def package(tmp_path):
    """An installed package with both; its method says no budget of its own."""
    site = write(
        tmp_path / "site",
        {
            "outsiders_package/__init__.py": "",
            "outsiders_package/method.py": METHOD,
            "outsiders_package/family.py": FAMILY,
            "outsiders_package/tail.yaml": 'description: "What comes last."\npositions: keep\n',
            "outsiders-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: outsiders\nVersion: 1.0\n",
            "outsiders-1.0.dist-info/entry_points.txt": POINTS,
        },
    )
    sys.path.insert(0, str(site))


def test_it_is_in_every_list(capsys):
    """`vtc list`, `vtc.families()`, what `vtc validate` goes through."""
    data = json.loads(run(capsys, "list", "--json")[1])
    assert "outsiders_other" in data["families"]
    assert data["strategies"][-1] == {"name": "tail", "budget": "none", "description": "What comes last."}
    assert "outsiders_other" in vtc.families()
    assert vtc.strategies()[-1] == "tail"
    assert "outsiders_other: ok" in run(capsys, "validate", "hiprune")[1]


def test_it_is_in_every_table():
    """What methods run on which family, what can be served, and what vLLM is told of."""
    (head, *_, last) = support_table().splitlines()
    column = [cell.strip() for cell in head.split("|")].index("outsiders_other")
    assert last.startswith("| `tail` |")
    assert last.split("|")[column].strip() == "yes"
    (head, *_, last) = table().splitlines()
    column = [cell.strip() for cell in head.split("|")].index("outsiders_other")
    assert last.startswith("| `tail` |")
    assert last.split("|")[column].strip() == "yes"
    assert models()["VtcOtherForConditionalGeneration"] == FAMILIES["outsiders_other"].served


@pytest.mark.parametrize("name", [pytest.param("tail", marks=pytest.mark.full), "outsiders_other"])
def test_the_contract_is_checked(name, capsys):
    """The method on all families, and the family with methods of vtc."""
    code, out, _ = run(capsys, "check", name, "--json")
    data = json.loads(out)
    assert (code, data["holds"]) == (0, True)
    assert list(data["properties"]) == list(CONTRACT)
    assert ("outsiders_other" in data["columns"]) == (name == "tail")


def test_it_is_measured(tmp_path, capsys):
    """`vtc bench` builds the family's own preset, and takes a folder of it."""
    few = ["--visual-tokens", "64", "--prompt-lengths", "12", "--new-tokens", "2", "--rounds", "1", "--warmup", "0"]
    given = ["--strategy", "tail", "--output", str(tmp_path / "bench")]
    code, out, err = run(capsys, "bench", "--preset", "other-small", *given, *few)
    assert (code, "tail" in out) == (0, True), err
    folder = tmp_path / "model"
    FAMILIES["outsiders_other"].tiny().save_pretrained(folder)
    assert run(capsys, "bench", "--model", str(folder), *given[:2], "--output", str(tmp_path / "2"), *few)[0] == 0
    code, _, err = run(capsys, "bench", "--preset", "other", *given)
    assert (code, "other-small" in err) == (2, True)


def test_it_is_evaluated(tmp_path, capsys):
    """`vtc eval` loads a folder of a model type that transformers does not know by itself."""
    folder = save_tiny("llava", tmp_path / "model")  # for its processor
    FAMILIES["outsiders_other"].tiny().save_pretrained(folder)
    grid = ["--model", str(folder), "--strategy", "tail", "--keep", "0.5", "--tasks", "demo", "--limit", "3"]
    code, _, err = run(capsys, "eval", *grid, "--output", str(tmp_path / "results"))
    assert code == 0, err
    (result,) = Path(tmp_path / "results" / "runs").glob("*.json")
    data = json.loads(result.read_text())
    assert data["model"]["family"] == "outsiders_other"
    assert data["method"]["resolved"]["stages"] == [{"method": "tail", "skip": 0}]
