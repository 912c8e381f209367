"""The README says what the registries say, and names only what exists."""

import re
from pathlib import Path

import vtc
from vtc.catalog import support_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_support_table_is_generated_from_the_registry():
    section = README.split("<!-- support -->")[1].split("<!-- /support -->")[0].strip()
    assert section == support_table(), "run: python -m tests.test_readme"


def test_every_strategy_is_described():
    described = README.split("## Methods and families")[1].split("<!-- support -->")[0]
    assert not [name for name in vtc.strategies() if f"`{name}`" not in described]


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


if __name__ == "__main__":
    head, rest = README.split("<!-- support -->")
    tail = rest.split("<!-- /support -->")[1]
    new = f"{head}<!-- support -->\n{support_table()}\n<!-- /support -->{tail}"
    (ROOT / "README.md").write_text(new, encoding="utf-8")
