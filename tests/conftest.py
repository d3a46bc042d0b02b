"""`pytest -m gpu` looks at the tests of GPUs alone: a machine that has some may have nothing but torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

GPU = Path(__file__).parent / "gpu"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules of other tests import what is not needed here."""
    if config.getoption("markexpr") != "gpu" or collection_path.is_dir():
        return None
    return True if collection_path.parent != GPU else None


@pytest.fixture(scope="session")
def digits_of_torch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of digits under DDP, trained once for all tests that only read it."""
    return _digits("digits_ddp", tmp_path_factory.mktemp("digits-of-torch"))


@pytest.fixture(scope="session")
def digits_of_tensorflow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of digits under MirroredStrategy, trained once for all tests that only read it."""
    return _digits("digits_mirrored", tmp_path_factory.mktemp("digits-of-tensorflow"))


def _digits(name: str, runs: Path) -> Any:
    from live import RECIPES, finished

    settings = ("train.steps=60", "train.evaluate_every=20", "checkpoint.every_steps=20")
    return finished(str(RECIPES / f"{name}.yaml"), *(part for one in settings for part in ("--set", one)), runs=runs)
