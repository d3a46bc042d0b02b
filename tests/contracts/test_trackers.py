"""What every installed tracker promises, found through the entry points and tried with the real libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtrain.api import testing
from dtrain.launch import registry

NEED_NOTHING = ("csv",)
NAMES = [
    pytest.param(name, marks=[] if name in NEED_NOTHING else pytest.mark.extras)
    for name in registry.installed("tracker")
]


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_goes_on_where_it_stopped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    options: dict[str, dict[str, Any]] = {
        "mlflow": {"uri": str(tmp_path / "mlruns")},
        "prometheus": {"folder": str(tmp_path / "textfiles")},
    }
    testing.check_tracker(lambda: registry.tracker(name, options.get(name, {})), tmp_path / "folder")
