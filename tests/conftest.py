"""`pytest -m gpu` looks at the tests of GPUs alone: a machine that has some may have nothing but torch."""

from __future__ import annotations

from pathlib import Path

import pytest

GPU = Path(__file__).parent / "gpu"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules of other tests import what is not needed here."""
    if config.getoption("markexpr") != "gpu" or collection_path.is_dir():
        return None
    return True if collection_path.parent != GPU else None
