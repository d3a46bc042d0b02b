"""The documents keep to their form, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from dtrain.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
INNER = re.compile(r"\b(zygotes?|templates?|agents?)\b", re.IGNORECASE)
"""Processes inside of dtrain, which docs/how-it-works.md introduces."""
CLICK: Any = typer.main.get_command(app)
OPTIONS = {name: {one for option in command.params for one in option.opts} for name, command in CLICK.commands.items()}
EVERYWHERE = {one for option in CLICK.params for one in option.opts} | {"--help"}
"""Options that stand anywhere on a command line."""
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:`|^|^\$ )dtrain ([a-z]\w*)([^`\n#|;]*)", re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The names that a link can use for the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_one_page_for_somebody_who_does_not_know_dtrain() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 180
    assert [line for line in lines if len(line) > 120] == []
    assert [line for line in lines if INNER.search(line.replace("docs/for-agents.md", ""))] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", document.read_text()):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_exists_and_has_the_options_that_are_shown(document: Path) -> None:
    text = document.read_text()
    code = FENCED.findall(text) + re.findall("`[^`\n]+`", FENCED.sub("", text))
    for name, rest in (found for piece in code for found in COMMAND.findall(piece)):
        assert name in OPTIONS, f"dtrain {name}"
        own = rest.partition(" -- ")[0]
        given = set(re.findall(r"(?<=[\s\[])--?[a-z][a-z-]*", own)) - EVERYWHERE
        assert given <= OPTIONS[name], f"dtrain {name}{rest}"
