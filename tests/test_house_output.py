"""House rules on ways out: files, lines and escaped texts go through one place each."""

import ast
import re

import pytest

from tests.test_house import ROOT, python_files, tree

# What has a place of its own, the files that it may stand in, and who else may call it.
PLACES = {
    r"os\.(replace|rename)|\.write_(text|bytes)|\bopen\([^)]*[\"'][wax]b?\+?[\"']": ("vtc/io/files.py", *(
        "vtc/bench/gpu.py", "vtc/bench/serving/vllm_engine.py",  # what a program that they start prints
        "eval/sweep/cells.py", "eval/sweep/study.py",  # locks
        "eval/results/samples.py",  # logs, a line at a time
    )),
    r"\.savefig\(": ("vtc/io/drawing.py", "eval/report/svg.py", "eval/inspect/sheet.py"),  # into the page, into memory
    r"(?<![\w.])print\(|typer\.echo|sys\.std(out|err)\.write|\bConsole\b|rich\.(console|markup|progress)": (
        "vtc/io/terminal.py", "eval/running/progress.py",
    ),
    r"jinja2|markupsafe|\bMarkup\b|^\s*(from|import) html\b|\.saxutils|\.tostring\(": ("vtc/io/page.py",),
    r"</(?!s>)[a-z]": (),  # HTML stands in templates; </s> is a token
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


def templates() -> dict[str, str]:
    """The texts that pages are made of, by path."""
    found = [path for folder in ("vtc", "patches", "eval") for path in (ROOT / folder).rglob("*")]
    found = [path for path in found if path.suffix in (".j2", ".css", ".js")]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in found}


def test_templates_leave_escaping_on():
    """Nothing switches it off but `drawing`, of a tree; values in scripts are JSON, values in attributes are quoted."""
    files = templates()
    assert [name for name in files if re.search(r"\|\s*drawing\b", files[name])] == ["eval/report/report.html.j2"]
    off = r"\|\s*(safe|e|escape|forceescape)\b|autoescape|Markup|=\s*\{\{|\bon[a-z]+\s*=\s*[\"'{]|\bsrcdoc\b"
    wrong = [f"{name}: {found[0]}" for name, text in files.items() for found in re.finditer(off, text)]
    for name, text in files.items():
        scripts = [text] if name.endswith(".js") else re.findall(r"<script>.*?</script>", text, re.DOTALL)
        values = re.findall(r"\{\{.*?\}\}", "".join(scripts), re.DOTALL)
        wrong += [f"{name}: {value}" for value in values if not re.search(r"\|\s*tojson\s*\}\}$", value)]
    assert not wrong


def test_one_stylesheet_with_light_and_dark():
    """Pages extend one frame and have its colours; only the report has some of its own, for the series of its plots."""
    files = templates()
    assert [name for name, text in files.items() if "<html" in text] == ["vtc/io/page.html.j2"]
    pages = [name for name in files if name.endswith(".j2") and name != "vtc/io/page.html.j2"]
    assert len(pages) >= 2
    assert all(files[name].startswith('{% extends "page.html.j2" %}') for name in pages)
    assert {name for name, text in files.items() if "prefers-color-scheme" in text} == {
        "vtc/io/page.css", "eval/report/report.css"
    }  # fmt: skip


def code_of(file: str) -> list[str]:
    """The lines of a file without its docstrings."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno):
                lines[number] = ""
    return lines
