"""House rules on ways out: files, lines and escaped texts go through one place each."""

import ast
import re

import pytest

from tests.test_house import ROOT, python_files, tree

# What has a place of its own, the files that it may stand in, and who else may call it.
PLACES = {
    r"os\.(replace|rename)|\.write_(text|bytes)|\bopen\([^)]*[\"'][wax]b?\+?[\"']": ("vtc/io/files.py", *(
        "vtc/bench/gpu.py", "vtc/vllm/measure_engine.py",  # what a program that they start prints
        "eval/sweep/cells.py", "eval/sweep/study.py",  # locks
        "eval/results/samples.py",  # logs, a line at a time
    )),
    r"\.savefig\(": ("vtc/io/drawing.py", "eval/report/svg.py", "eval/inspect/draw.py"),  # into the page, into memory
    r"(?<![\w.])print\(|typer\.echo|sys\.std(out|err)\.write|\bConsole\b|rich\.(console|markup|progress)": (
        "vtc/io/terminal.py", "eval/running/progress.py",
    ),
    r"\bhtml\.escape\(|^\s*(from|import) html\b|\.saxutils|markupsafe": ("vtc/io/escape.py",),
}  # fmt: skip


@pytest.mark.parametrize("pattern", PLACES)
def test_one_place_for_each_way_out(pattern):
    """Files are replaced, lines are printed and texts escaped in one place, whose rules nothing goes around."""
    wrong = []
    for file in python_files("vtc", "patches", "eval"):
        for number, line in enumerate(code_of(file), 1):
            if re.search(pattern, line) and file not in PLACES[pattern]:
                wrong.append(f"{file}:{number} {line.strip()}")
    assert not wrong


def code_of(file: str) -> list[str]:
    """The lines of a file without its docstrings."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno):
                lines[number] = ""
    return lines
