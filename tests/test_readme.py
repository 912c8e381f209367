"""The README says what the registries say, and names only what exists."""

import re
from pathlib import Path

import vtc
from vtc.catalog import support_table
from vtc.vllm.capability import table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_support_table_is_generated_from_the_registry():
    section = README.split("<!-- support -->")[1].split("<!-- /support -->")[0].strip()
    assert section == support_table(), "run: python -m tests.test_readme"


def test_the_table_of_what_can_be_served_is_generated():
    section = README.split("<!-- served -->")[1].split("<!-- /served -->")[0].strip()
    assert section == table(), "run: python -m tests.test_readme"


def test_every_strategy_is_described():
    described = README.split("## Methods and families")[1].split("<!-- support -->")[0]
    assert not [name for name in vtc.strategies() if f"`{name}`" not in described]


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


if __name__ == "__main__":
    for name, content in {"support": support_table(), "served": table()}.items():
        README = re.sub(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", rf"\1{content}\n\2", README, flags=re.DOTALL)
    (ROOT / "README.md").write_text(README, encoding="utf-8")
