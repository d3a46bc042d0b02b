"""The guides: what each of them says is typed in an empty folder, and works."""

from __future__ import annotations

from pathlib import Path

import documents
import pytest
from live import ROOT

GUIDES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("guide-*.md"))


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_works_at_the_first_try(guide: str, tmp_path: Path) -> None:
    documents.files(guide, tmp_path)
    documents.session(documents.commands(guide), tmp_path)
