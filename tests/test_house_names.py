"""House rule on names: a class means one thing in all of the library, and so does the name of a file."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.test_house import FOLDERS, python_files, tree

LIBRARY = tuple(folder for folder in FOLDERS if folder != "tests")

# Names of classes that may be there more than once, and why.
CLASSES: dict[str, str] = {}

ANYTHING = {"found", "mine", "there", "told", "strange", "yours", "theirs", "ours"}

# Names of files that are the same kind of thing in each room.
FILES = {
    "__init__": "a package",
    "__main__": "what `python -m` runs",
    "reference": "a kernel's definition",
    "triton": "a kernel for GPUs",
    "checks": "what a kernel takes",
    "read": "how a room reads what it has written",
    "page": "how a page of HTML comes about",
}


def repeated(places: dict[str, list[str]]) -> dict[str, list[str]]:
    """Those that are in more than one place."""
    return {name: found for name, found in places.items() if len(found) > 1}


def classes() -> dict[str, list[str]]:
    """Where the classes of each name are, nested and private ones included."""
    places = defaultdict(list)
    for file in python_files(*LIBRARY):
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{file}:{node.lineno}")
    return places


def files() -> dict[str, list[str]]:
    """Where the files of each name are; a command's and a served family's are left out where the other is meant."""
    places = defaultdict(list)
    families = {Path(file).stem for file in python_files("patches")}
    for file in python_files(*LIBRARY):
        name = Path(file).stem
        if not (file.startswith("vtc/cli/") or file.startswith("vtc/vllm/") and name in families):
            places[name].append(file)
    return places


def test_a_class_name_means_one_thing():
    """No two classes of the library share a name."""
    assert not {name: found for name, found in repeated(classes()).items() if name not in CLASSES}


def test_a_file_name_means_one_thing():
    """No two files of the library share a name, but where each room has one of the same kind."""
    assert not {name: found for name, found in repeated(files()).items() if name not in FILES}


def test_a_variable_says_what_it_holds():
    """No variable, argument or function of the library has one of the names that fit anything."""
    for file in python_files(*LIBRARY):
        for node in ast.walk(tree(file)):
            stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            name = node.id if stored else getattr(node, "arg", getattr(node, "name", None))
            assert name not in ANYTHING, f"{file}:{node.lineno}: {name}"


def test_the_lists_hold_what_there_is():
    """A name that is allowed twice is there twice."""
    assert set(CLASSES) <= set(repeated(classes()))
    assert set(FILES) <= set(repeated(files()))
