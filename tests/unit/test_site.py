"""The documents make a site in which every link leads somewhere, with references of all commands, keys and public names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dtrain
from dtrain.launch import explain

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [
        sys.executable,
        "-P",
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
        "--site-dir",
        str(folder),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # `strict`: a link that leads nowhere is an error
    return folder


def test_every_document_is_a_page_that_can_be_found(site: Path) -> None:
    index = (site / "index.html").read_text()
    for document in (ROOT / "docs").glob("*.md"):
        assert f'href="{document.stem}.html"' in index, document
    assert "Recipes that come with it" in index


def test_the_references_are_complete(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text()
    for name in ("run", "reproduce", "pull", "resize"):
        assert f"dtrain {name}" in text
    found = set(re.findall(r'<h[23] id="([^"]+)"', (site / "reference" / "recipe.html").read_text()))
    assert len(found) >= len(explain.every_key()) > 100
    assert all(f"dtrain.{name}" in (site / "reference" / "python.html").read_text() for name in dtrain.__all__)


def test_it_is_read_without_a_network(site: Path) -> None:
    for page in (site / "index.html", site / "reference" / "commands.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.read_text())
        assert not [one for one in loaded if "//" in one]
        assert all((page.parent / one.partition("?")[0]).exists() for one in loaded if not one.startswith("data:"))
