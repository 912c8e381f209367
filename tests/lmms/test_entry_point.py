"""The entry point for lmms-eval names what exists, and costs nothing where lmms-eval is not installed."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_entry_point_and_class_exist():
    """pyproject.toml names a function of vtc.eval.lmms, and that names a class of vtc.eval.lmms.bridge."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["vtc"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    (path,) = re.findall(
        r'chat_class_path="([\w.]+)"', (ROOT / "eval" / "lmms" / "__init__.py").read_text(encoding="utf-8")
    )
    where, _, kind = path.rpartition(".")
    source = ROOT.joinpath(*where.removeprefix("vtc.").split(".")).with_suffix(".py").read_text(encoding="utf-8")
    assert kind in [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


def test_import_needs_neither_lmms_eval_nor_torch():
    """Importing vtc and the entry point's module loads neither."""
    code = "import sys, vtc, vtc.eval.lmms; print({'torch', 'lmms_eval'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"
