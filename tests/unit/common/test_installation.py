"""The command that installs an extra works where dtrain was installed from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtrain.common import installation

METADATA = """Metadata-Version: 2.1
Name: dtrain
Version: 1
Requires-Dist: numpy>=1.24
Requires-Dist: torch>=2.6; extra == "torch"
Requires-Dist: tensorboard>=2.16; extra == 'tensorboard'
Provides-Extra: torch
"""


def installed(folder: Path, url: str | None, monkeypatch: pytest.MonkeyPatch, **facts: object) -> None:
    """This environment has a dtrain that came from a URL, or from an index."""
    info = folder / "site" / "dtrain-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    if url is not None:
        (info / "direct_url.json").write_text(json.dumps({"url": url} | facts))
    monkeypatch.setattr("sys.path", [str(folder / "site")])


def test_a_checkout_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my code").mkdir()
    installed(tmp_path, f"file://{tmp_path}/my%20code", monkeypatch, dir_info={})
    assert installation.command("torch") == f"pip install '{tmp_path}/my code[torch]'"
    assert installation.command("jax") == "pip install jax"


def test_an_editable_checkout_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, f"file://{tmp_path}", monkeypatch, dir_info={"editable": True})
    assert installation.command("torch") == f"pip install -e '{tmp_path}[torch]'"


@pytest.mark.parametrize("url", ["file:///gone/dtrain-1.whl", "https://user@host/dtrain-1.whl", None])
def test_without_its_source_the_packages_themselves_are_named(
    url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, url, monkeypatch)
    assert installation.command("torch") == "pip install 'torch>=2.6'"
    assert installation.command("tensorboard") == "pip install 'tensorboard>=2.16'"
