"""House rules read from the source (imports, lengths, docstrings, shipped folders), and what an import does."""

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("vtc", "patches", "eval", "tests")
LONGEST, LONGEST_TEST = 300, 400  # lines of a Python file

LINKED = ("patches", "eval", "configs")  # beside vtc/, and in it by a link

# Families that may use another family's file, beside files whose name starts with an underscore.
RELATED_FAMILIES = {
    "smolvlm": {"idefics3"},
    "llava_next": {"llava"},
    "qwen2_5_vl": {"qwen2_vl"},
    "qwen3_vl": {"qwen2_vl"},
    "glm4v": {"qwen2_vl"},
    "glm46v": {"glm4v"},
    "glm4v_moe": {"glm4v"},
    "llava_onevision": {"llava_next"},
    "llava_next_video": {"llava", "llava_next"},
    "qwen3_vl_moe": {"qwen3_vl"},
    "qwen3_5": {"qwen2_vl", "qwen3_vl"},
    "qwen3_5_moe": {"qwen3_5", "qwen2_vl", "qwen3_vl"},
}


@dataclass(frozen=True)
class Part:
    """Files (a pattern on the path) and what they may import; a name covers its submodules, `=vtc` is the bare package.

    may: all that is allowed of vtc, None for everything not forbidden; never: forbidden wherever it is written;
    not_on_import: forbidden outside functions; third: all third-party packages allowed, None for any.
    """

    files: str
    may: tuple[str, ...] | None = None
    never: tuple[str, ...] = ()
    not_on_import: tuple[str, ...] = ()
    third: tuple[str, ...] | None = None


OUTER = ("vtc.eval", "vtc.cli", "vtc.demo")
PARTS = {
    "errors": Part(r"vtc/core/errors\.py", may=(), third=()),
    "registry": Part(r"vtc/core/registry\.py", may=("vtc.core.errors",), third=()),
    "core": Part(r"vtc/core/.*", may=("vtc.core",)),
    "io": Part(r"vtc/io/.*", may=("vtc.core.errors", "vtc.io"), not_on_import=("matplotlib",)),
    "kernels": Part(r"vtc/kernels/.*", may=("vtc.kernels",), third=("torch", "triton")),
    "strategies": Part(
        r"vtc/strategies/.*",
        never=("=vtc", "vtc.patches", "vtc.engine", "vtc.patching", "vtc.core.hooks", *OUTER, "transformers"),
    ),
    "patches": Part(r"patches/.*", never=("=vtc", "vtc.strategies", "vtc.config.resolve", "vtc.patching", *OUTER)),
    "families": Part(r"patches/(?!_observe).*", not_on_import=("transformers", "vtc.patches._observe")),
    "engine": Part(r"vtc/engine/.*", never=("=vtc", *OUTER), not_on_import=("transformers",)),
    "front": Part(
        r"vtc/__init__\.py",
        not_on_import=("transformers", "vtc.config", "vtc.patching", "vtc.strategies", *OUTER),
    ),
    "config": Part(r"vtc/config/.*", never=("=vtc", "vtc.engine", "vtc.patching", *OUTER, "transformers")),
    "patching": Part(r"vtc/patching\.py", never=OUTER, not_on_import=("transformers", "vtc.patches")),
    "cli": Part(r"vtc/(cli/.*|__main__\.py)", not_on_import=("transformers", "vtc.eval", "vtc.demo", "vtc.vllm")),
    "check": Part(r"vtc/check/.*", never=("=vtc", "vtc.bench", "vtc.vllm", *OUTER), not_on_import=("transformers",)),
    "demo": Part(r"vtc/demo/.*", never=("vtc.eval", "vtc.cli", "vtc.vllm")),
    "bench": Part(r"vtc/bench/.*", never=("vtc.cli", "vtc.demo"), not_on_import=("transformers", "vtc.eval")),
    "serving bench": Part(r"vtc/bench/serving/.*", not_on_import=("vtc.vllm", "vllm")),
    "vllm": Part(r"vtc/vllm/.*", never=("=vtc", "vtc.bench", *OUTER)),
    "around vllm": Part(r"(vtc/(?!vllm|cli/serve|bench/serving).*|patches/.*|eval/.*)", never=("vtc.vllm", "vllm")),
    "eval": Part(
        r"eval/.*",
        may=(
            "=vtc", "vtc.eval", "vtc.demo", "vtc.engine.clock", "vtc.core.errors", "vtc.core.registry", "vtc.io",
            "vtc.kernels.backend", "vtc.patching", "vtc.config.strategy",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One import: the module's full name, its line, and whether it waits inside a function or for a type checker."""

    module: str
    line: int
    lazy: bool


def python_files(*folders: str) -> list[str]:
    """Paths relative to the root of every Python file in `folders`, whatever appears there later."""
    found = (path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


@functools.cache
def tree(file: str) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def home(module: str) -> Path:
    """Where a module of vtc would stand, without its suffix."""
    return ROOT.joinpath(*module.split("."))


def is_module(module: str) -> bool:
    """Whether vtc has a module or a package of this name."""
    return home(module).is_dir() or home(module).with_suffix(".py").is_file()


@functools.cache
def imports(file: str) -> tuple[Import, ...]:
    """Every import of a file, `import_module("...")` too; `from vtc import x` is `vtc.x` where that is a module."""
    found = []

    def add(module: str, node: ast.AST, lazy: bool) -> None:
        found.append(Import(module, node.lineno, lazy))

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name, node, lazy)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                add(full if full.startswith("vtc.") and is_module(full) else node.module, node, lazy)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for name in [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]:
                add(str(name), node, lazy)
        waits = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        for child in ast.iter_child_nodes(node):
            visit(child, lazy or waits)

    visit(tree(file), False)
    return tuple(found)


def covers(names: tuple[str, ...], module: str) -> bool:
    """Whether `module` is one of `names` or below one of them."""
    return any(module == name.lstrip("=") or module.startswith(name + ".") for name in names)


def objection(part: Part, item: Import) -> str | None:
    """Why a part may not import this, or None."""
    top = item.module.partition(".")[0]
    if covers(part.never, item.module):
        return "forbidden here"
    if not item.lazy and covers(part.not_on_import, item.module):
        return "only inside a function"
    if top == "vtc":
        return None if part.may is None or covers(part.may, item.module) else f"allowed: {part.may}"
    if part.third is not None and top not in part.third and top not in sys.stdlib_module_names:
        return f"allowed beside the standard library: {part.third}"
    return None


@pytest.mark.parametrize("name", PARTS)
def test_import_directions(name):
    """Each part imports only what the table allows."""
    part = PARTS[name]
    files = [file for file in python_files(*FOLDERS) if re.fullmatch(part.files, file)]
    assert files, f"no file matches {part.files}: the table is out of date"
    checked = ((file, item, objection(part, item)) for file in files for item in imports(file))
    assert not [f"{file}:{item.line} {item.module}: {why}" for file, item, why in checked if why]


def test_triton_only_in_triton_files():
    """Triton is imported by kernels/<op>/triton.py and nowhere else."""
    wrong = [
        f"{file}:{item.line}"
        for file in python_files("vtc", "patches", "eval")
        for item in imports(file)
        if item.module.partition(".")[0] == "triton" and not re.fullmatch(r"vtc/kernels/.*/triton\.py", file)
    ]
    assert not wrong


def test_kernels_do_not_know_each_other():
    """A kernel folder imports from itself and from the single files of vtc/kernels, not from another folder."""
    wrong = []
    for file in python_files("vtc/kernels"):
        own = ".".join(Path(file).parent.parts)
        for item in imports(file):
            folder = item.module.startswith("vtc.kernels.") and ".".join(item.module.split(".")[:3])
            if folder and home(folder).is_dir() and own not in ("vtc.kernels", folder):
                wrong.append(f"{file}:{item.line} {item.module}")
    assert not wrong


def test_families_do_not_know_each_other():
    """A family file uses shared files only, or the family that it is declared to be related to."""
    wrong = []
    for file in python_files("patches"):
        own = Path(file).stem
        allowed = {own, *RELATED_FAMILIES.get(own, ())}
        for item in imports(file):
            if item.module.startswith("vtc.patches."):
                other = item.module.split(".")[2]
                if not (other in allowed or other.startswith("_") or own == "__init__"):
                    wrong.append(f"{file}:{item.line} {item.module}")
    assert not wrong


def test_imports_are_absolute():
    """No relative import, and no bare `patches`, `eval` or `configs`."""
    wrong = []
    for file in python_files(*FOLDERS):
        relative = [n for n in ast.walk(tree(file)) if isinstance(n, ast.ImportFrom) and n.level > 0]
        bare = [item for item in imports(file) if item.module.partition(".")[0] in LINKED]
        wrong += [f"{file}:{n.lineno} relative" for n in relative] + [f"{file}:{item.line} bare" for item in bare]
    assert not wrong


def test_file_length():
    """No Python file of the library has more than 300 lines, none of the tests more than 400."""
    lengths = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in python_files(*FOLDERS)}
    most = {file: LONGEST_TEST if file.startswith("tests/") else LONGEST for file in lengths}
    assert not {file: lines for file, lines in lengths.items() if lines > most[file]}


def test_module_docstrings():
    """Every public module says what it is for."""
    public = [f for f in python_files("vtc", "patches", "eval") if Path(f).stem == "__init__" or Path(f).stem[0] != "_"]
    assert not [file for file in public if not (ast.get_docstring(tree(file)) or "").strip()]


def test_every_folder_is_shipped():
    """The folders beside vtc/ are in it by a link, and each folder with Python has an __init__.py: one without is no
    package when the wheel is built."""
    assert {name: (ROOT / "vtc" / name).readlink().as_posix() for name in LINKED} == {n: f"../{n}" for n in LINKED}
    folders = {(ROOT / file).parent for file in python_files("vtc", "patches", "eval")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_nothing_is_found_twice():
    """A file of the library has one name, and the tests are no part of it."""
    done = run_python("-c", "import vtc.eval, vtc.patches; print(*vtc.__path__, sep='\\n'); import vtc.tests")
    assert done.stdout.splitlines() == [str(ROOT / "vtc")]
    assert done.stderr.strip().splitlines()[-1] == "ModuleNotFoundError: No module named 'vtc.tests'"


def test_text_names_no_machine():
    """No tracked text holds a path of somebody's machine or the name of a package index."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    index = "|".join(["py" + "pi", "python" + "hosted", "download" + r"\.pytorch", "--(extra-)?" + "index-url"])
    machine = "|".join(rf"(?<![\w.:-])/{folder}/" for folder in ("work", "home", "root", "Users"))
    wrong = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" in data or path.suffix in (".safetensors", ".png", ".jpg"):
            continue
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            if re.search(index, line, re.IGNORECASE) or re.search(machine, line):
                wrong.append(f"{name}:{number} {line.strip()[:80]}")
    assert not wrong


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    """A fresh interpreter in the checkout, seeing it first and the network not at all."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


def test_importing_vtc_is_light():
    """`import vtc` loads neither transformers nor Triton beyond what torch loads by itself."""
    code = "import sys, torch; before = set(sys.modules); import vtc; print(*sorted(set(sys.modules) - before))"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {"transformers", "triton", "matplotlib"}


def test_importing_everything_changes_nothing():
    """Importing every module leaves transformers' tables as they were, and vtc's public names callable.

    The names need saying: importing a module puts it in the place of a function of the same name.
    Files for inside vLLM need vLLM.
    """
    files = [f for f in python_files("vtc", "patches") if Path(f).stem not in ("triton", "__main__")]
    files = [f for f in files if not any(covers(("vllm",), item.module) and not item.lazy for item in imports(f))]
    modules = []
    for file in files:
        parts = Path(file).with_suffix("").parts
        parts = parts if parts[0] == "vtc" else ("vtc", *parts)
        modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    code = f"""
import importlib
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as masks
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as attention
before = [dict(attention), dict(masks)]
for module in {modules!r}:
    importlib.import_module(module)
assert [dict(attention), dict(masks)] == before, set(dict(attention)) ^ set(before[0])
import vtc
assert not [name for name in vtc.__all__ if not callable(getattr(vtc, name))]
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
