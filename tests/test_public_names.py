"""The public interface as type checkers see it."""

import ast
from pathlib import Path

import vtc

SCRIPT = Path(__file__).parent / "typing" / "public_names.py"


def test_types_of_every_public_name_are_checked():
    """The script that mypy checks uses all of them."""
    used = [node for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)]
    names = {node.attr for node in used if ast.unparse(node.value) == "vtc"}
    assert names - {"__version__", "pacth"} == set(vtc.__all__)
