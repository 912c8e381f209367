"""README and docs/ say what the registries say, and name only what exists."""

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path

import pytest
import transformers

import vtc
from tests import helpers_ways
from vtc.config.catalog import refused_table, support_table
from vtc.core import signals
from vtc.core.selection import Extra, Merge, Selection
from vtc.eval.tasks import Task
from vtc.patches import FAMILIES, available
from vtc.patches._family import Family
from vtc.strategies import METHODS, shipped
from vtc.strategies.base import AttentionStage, Cut, DecoderStage, EncoderStage, Stage, Step
from vtc.vllm.capability import table

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LONGEST = 150  # lines of the README
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *DOCS.glob("*.md")])
MARKS = {
    "support": ("families.md", support_table),
    "refused": ("families.md", refused_table),
    "served": ("serving.md", table),
    "ways": ("running.md", helpers_ways.table),
}

METHODS_TOP = """# Methods

Each method as its docstring describes it: what it keeps, its knobs, its source, and where it departs from paper or
code. The defaults are the method's own; a strategy's YAML may set others, for a family too, and
`vtc show STRATEGY --family FAMILY` prints the values that then apply. N is the number of visual tokens, `count` how
many of them are to stay. This page is written by `python -m tests.test_readme`.
"""
SOURCES = """## Sources

As [NOTICE](../NOTICE) has them; nothing of the codes named here is part of vtc.
"""
SPECIAL, ESCAPED = re.compile(r"`[^`]*`|[*<]"), {"*": r"\*", "<": "&lt;"}  # code stays as it is
HEADS = re.compile(r"^(Knobs|Paper|Departures|Where the paper leaves room):", re.MULTILINE)
KNOB = re.compile(r"^- (\w+):", re.MULTILINE)

REFERENCE_TOP = """# API reference

Everything public. `make docs` fills this page in from the docstrings; the list is written by
`python -m tests.test_readme`.
"""
CONTRACTS = {
    "Methods": (Stage, EncoderStage, Cut, DecoderStage, Step, AttentionStage),
    "Selections": (Selection, Merge, Extra),
    "What a method is told": (signals.Context, signals.Extent, signals.Encoder, signals.Decoder),
    "Signals": typing.get_args(signals.Signal),
    "Families and benchmarks": (Family, Task),
}


def read(page: str) -> str:
    """The text of a page, by its path from the root."""
    return (ROOT / page).read_text(encoding="utf-8")


def noticed() -> dict[str, tuple[str, ...]]:
    """NOTICE by method: paper, official code and its licence, the lines of a row joined."""
    lines = read("NOTICE").partition("\nmethod ")[2].splitlines()[1:]
    begins = [found.start() for found in re.finditer("-+", lines[0])]
    rows: dict[str, list[list[str]]] = {}
    for line in lines[1:]:
        cells = [line[a:b].strip() for a, b in zip(begins, [*begins[1:], None])]
        rows.setdefault(cells[0] or list(rows)[-1], []).append(cells[2:])
    return {name: tuple(" ".join(part).strip() for part in zip(*cells)) for name, cells in rows.items()}


def base(method: str) -> str:
    """The name in NOTICE, which has one row for both stages of one paper."""
    return method.removesuffix("_projector").removesuffix("_decoder")


def sources_table() -> str:
    """Strategies with paper, code and licence as NOTICE has them, and links to where the departures stand."""
    rows = ["| strategy | paper | official code | licence of that code | departures |", "|---|---|---|---|---|"]
    for name in shipped():
        methods = [stage.method for stage in vtc.load_strategy(name).stages]
        found = [noticed()[one] for one in dict.fromkeys(map(base, methods))]
        links = ", ".join(f"[{method}](#{method})" for method in methods)
        rows.append(f"| `{name}` | {' | '.join('; '.join(column) for column in zip(*found))} | {links} |")
    return "\n".join(rows)


def methods_page() -> str:
    """docs/methods.md: a table of sources, then every method with its defaults and its docstring as Markdown."""
    stages = {name: [f"`{stage.method}`" for stage in vtc.load_strategy(name).stages] for name in vtc.strategies()}
    several = "; ".join(f"`{name}` is {', then '.join(row)}" for name, row in stages.items() if len(row) > 1)
    several = f"Most strategies are one method of the same name. Of several: {several}.\n"
    parts = [METHODS_TOP, several, SOURCES, f"{sources_table()}\n"]
    shipped = {name: METHODS[name] for name in METHODS if METHODS[name].__module__.startswith("vtc.strategies.")}
    for name, method in shipped.items():
        knobs = ", ".join(f"`{knob.name}={knob.default!r}`" for knob in dataclasses.fields(method))
        text = SPECIAL.sub(lambda one: ESCAPED.get(one[0], one[0]), inspect.getdoc(method))
        text = KNOB.sub(r"- `\1`:", text.replace("Knobs:\n", "Knobs:\n\n"))
        text = re.sub(r"\n{2,}", "\n\n", HEADS.sub(r"\n**\1:**", text))
        parts.append(f"## {name}\n\nSite: {method.site}. {f'Defaults: {knobs}' if knobs else 'No knobs'}.\n\n{text}\n")
    return "\n".join(parts)


def address(item: object) -> str:
    """Where an object is defined, as mkdocstrings names it."""
    return item.__name__ if isinstance(item, types.ModuleType) else f"{item.__module__}.{item.__qualname__}"


def reference_page() -> str:
    """docs/reference.md: a line for mkdocstrings for each public name and each class that extensions derive from."""
    parts = [REFERENCE_TOP, "## The package\n"]
    for name in vtc.__all__:
        where, members = address(getattr(vtc, name)), isinstance(getattr(vtc, name), types.FunctionType)
        hidden = "" if members else "\n      members: false"
        parts.append(f"::: {where}\n    options:\n      heading: vtc.{name}{hidden}\n")
    for title, classes in CONTRACTS.items():
        parts += [f"## {title}\n", *(f"::: {address(one)}\n" for one in classes)]
    return "\n".join(parts)


GENERATED = {"methods.md": methods_page, "reference.md": reference_page}


@pytest.mark.parametrize("name", shipped())
def test_every_method_names_its_paper_code_and_departures(name):
    """NOTICE has paper, code and licence; what has a paper says in its docstring where it departs from it."""
    for stage in vtc.load_strategy(name).stages:
        paper, code, licence = noticed()[base(stage.method)]
        assert paper
        assert code
        assert licence
        if "no paper" not in paper:
            doc = " ".join(inspect.getdoc(METHODS[stage.method]).split())
            assert set(re.findall(r"arXiv \d{4}\.\d{5}", paper)) <= set(re.findall(r"arXiv \d{4}\.\d{5}", doc))
            assert re.search(r"Departures|leaves room", doc)
            assert code.split(",")[0] in doc or "/" not in code


def test_every_family_names_its_source():
    """The class of transformers that it is for, and the paper or report where there is one."""
    for name in vtc.families():
        doc = " ".join(inspect.getdoc(FAMILIES[name]).split())
        (source,) = re.findall(r"Source: `(\w+)` of transformers(.*)$", doc)
        assert re.fullmatch(r"(; [^;]+ (arXiv \d{4}\.\d{5}|blog of \w+ 20\d\d))*\.", source[1])
        if available(name):
            assert getattr(transformers, source[0]).config_class.model_type in FAMILIES[name].model_types


@pytest.mark.parametrize("mark", MARKS)
def test_generated_tables_are_current(mark):
    page, content = MARKS[mark]
    section = read(f"docs/{page}").split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0].strip()
    assert section == content(), "run: python -m tests.test_readme"


@pytest.mark.parametrize("page", GENERATED)
def test_generated_pages_are_current(page):
    assert read(f"docs/{page}") == GENERATED[page](), "run: python -m tests.test_readme"


def test_the_readme_is_one_page():
    assert len(read("README.md").splitlines()) <= LONGEST


def test_every_strategy_and_family_is_described():
    described = read("README.md").split("## Methods")[1].split("## Which method to take")[0]
    assert not [name for name in [*vtc.strategies(), *vtc.families()] if f"`{name}`" not in described]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)#:\s]+)", read(page))
    assert not [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]


def test_every_page_can_be_reached_from_the_readme():
    assert not [page for page in PAGES if page not in ("README.md", *re.findall(r"\]\(([^)#]+)", read("README.md")))]


def python_blocks(page: str) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"^```python\n(.*?)^```", read(page), flags=re.DOTALL | re.MULTILINE)


def test_the_quickstart_runs(tmp_path, monkeypatch, capsys):
    """With the bundled model in the place of a checkpoint on the hub."""
    from PIL import Image

    from vtc.demo import MODEL_DIR

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (112, 112), "red").save("photo.jpg")
    code = python_blocks("docs/quickstart.md")[0]
    name = re.search(r'^name = "(.*)"', code, re.MULTILINE)[1]
    exec(code.replace(name, str(MODEL_DIR)).replace("What is in this picture?", "What color is the ring?"), {})
    assert "196 -> 49.0" in capsys.readouterr().out


def test_the_example_of_a_method_runs(monkeypatch):
    from vtc.demo import benchmark, load

    (code,) = python_blocks("docs/extending.md")
    monkeypatch.setattr(METHODS, "_items", {name: METHODS[name] for name in METHODS})
    model, processor = load()
    exec(code, {"model": model, "__name__": "example"})
    sample = benchmark.sample("test", 0)
    question = [{"type": "image", "image": sample["image"]}, {"type": "text", "text": sample["question"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    model.generate(**inputs, max_new_tokens=2)
    assert vtc.report(model).tokens_before == 196
    assert vtc.report(model).kv_lengths == [inputs["input_ids"].shape[1] - 147] * 8


if __name__ == "__main__":
    for mark, (page, content) in MARKS.items():
        before, _, rest = read(f"docs/{page}").partition(f"<!-- {mark} -->")
        after = rest.partition(f"<!-- /{mark} -->")[2]
        (DOCS / page).write_text(f"{before}<!-- {mark} -->\n{content()}\n<!-- /{mark} -->{after}", encoding="utf-8")
    for page, content in GENERATED.items():
        (DOCS / page).write_text(content(), encoding="utf-8")
