"""docs/tuning.md is typed."""

from __future__ import annotations

from pathlib import Path

import documents
import pytest

pytest.importorskip("optuna")


def test_what_the_page_says_to_type_prints_what_it_shows(tmp_path: Path) -> None:
    documents.files("docs/tuning.md", tmp_path)
    documents.session(documents.commands("docs/tuning.md"), tmp_path)
