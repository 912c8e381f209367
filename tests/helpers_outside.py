"""Packages and modules of other people, made in a temporary folder, and registries that forget them afterwards."""

import importlib
import sys
from pathlib import Path

import pytest

import vtc
from vtc.core.registry import MODULES
from vtc.demo import benchmark, load
from vtc.eval.tasks import TASKS
from vtc.patches import FAMILIES
from vtc.strategies import METHODS

METHOD = '''
from dataclasses import dataclass
from pathlib import Path

import torch

from vtc.core.selection import Selection
from vtc.strategies.base import Stage


@dataclass(frozen=True)
class Tail(Stage):
    """The last tokens.

    In raster order.
    """

    skip: int = 0
    strategy = Path(__file__).with_name("tail.yaml")

    def select(self, context, encoder):
        last = context.tokens - self.skip
        return Selection(torch.arange(last - context.count, last).expand(len(context.ordinals), -1))
'''

TASK = '''
from vtc.eval.tasks import TASKS
from vtc.eval.tasks.demo import Demo


@TASKS.register("backwards")
class Backwards(Demo):
    """The demo benchmark with every answer read backwards."""

    name = "backwards"

    def score(self, reference, text):
        return super().score(reference, text[::-1])
'''


FAMILY = '''
from vtc.patches.llava import Llava


class Other(Llava):
    """LLaVA under another name."""

    name = "other"
    model_types = ("other",)
'''


POINTS = """[vtc.strategies]
tail = outsiders_package.method:Tail
[vtc.tasks]
backwards = outsiders_package.task
"""


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    """Registries, environment and import path as they were before."""
    for registry in (METHODS, FAMILIES, TASKS):
        registry.names()
        for held in ("_items", "_unnamed", "_broken"):
            monkeypatch.setattr(registry, held, dict(getattr(registry, held)))
        monkeypatch.setattr(registry, "_looked", False)
    monkeypatch.setenv(MODULES, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.startswith(("outsiders_", "patches"))]:
        del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> Path:
    """The folder, with these files in it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    return folder


def installed(folder: Path, points: str) -> Path:
    """A package with one method and one benchmark, as an installer would have left it in `folder`."""
    return write(
        folder,
        {
            "outsiders_package/__init__.py": "",
            "outsiders_package/method.py": METHOD,
            "outsiders_package/task.py": TASK,
            "outsiders_package/tail.yaml": 'description: "What comes last."\nkeep: 0.125\npositions: keep\n',
            "outsiders-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: outsiders\nVersion: 1.0\n",
            "outsiders-1.0.dist-info/entry_points.txt": points,
        },
    )


def kept(strategy: object, **options) -> float:
    """The visual tokens that the bundled model keeps of a picture's 196."""
    model, processor = load()
    vtc.patch(model, strategy, **options)
    sample = benchmark.sample("test", 0)
    question = [{"type": "image", "image": sample["image"]}, {"type": "text", "text": sample["question"]}]
    turns = [{"role": "user", "content": question}]
    inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, return_tensors="pt")
    model.generate(**inputs, max_new_tokens=2)
    return vtc.report(model).tokens_after
