"""Every method has a page that says the same five things, and is found from both documents about methods."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from acdc.discovery import METHODS
from acdc.spec import BY_ROLE, METHOD_SPECS, PER_EXAMPLE

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEADINGS = ["Idea", "Formula", "Cost", "When to use", "What it fails on"]


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_page_says_five_things(method: str) -> None:
    page = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {method}")
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    said = {heading: text.strip() for heading, _, text in (section.partition("\n") for section in sections)}
    assert list(said) == HEADINGS
    assert all(said.values())
    assert ("gives scores per prompt" in " ".join(said["Cost"].split())) == (method in PER_EXAMPLE)


@pytest.mark.parametrize("document", ["reference/methods.md", "concepts/methods.md"])
def test_documents_about_methods_lead_to_the_page_of_each(document: str) -> None:
    linked = re.findall(r"\(\.\./methods/([a-z-]+)\.md\)", (DOCS / document).read_text(encoding="utf-8"))
    assert set(linked) == set(METHODS) == set(METHOD_SPECS)


def test_there_is_no_page_of_a_method_that_there_is_not() -> None:
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} == set(METHODS)


def test_the_page_on_positions_lists_the_methods_that_split_edges() -> None:
    page = (DOCS / "concepts" / "positions.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^Methods: ([^.]*)\.", page, flags=re.MULTILINE)
    assert sorted(re.findall(r"`([a-z-]+)`", listed)) == sorted(BY_ROLE)


def test_the_readmes_table_has_every_method_and_no_other() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Methods", 1)[1].split("\n\n")[1]
    first_cells = (line.split("|")[1] for line in table.splitlines())
    assert sorted(re.findall(r"`([a-z-]+)`", " ".join(first_cells))) == sorted(METHODS)
