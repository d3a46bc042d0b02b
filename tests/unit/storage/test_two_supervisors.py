"""dtrain's own code as two supervisors of one run on remote storage: one is held up before each of its operations, the other takes over,
is held up itself, and the first one goes on as if nothing had happened."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from two_supervisors import OPERATIONS, both, problem

from dtrain.storage import run_lease

SEED = 3
PAIRS = 120


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks finds that the other one has not been heard of for long."""
    monkeypatch.setattr(run_lease, "age_seconds", lambda _: 3600.0)


def test_one_that_wakes_after_the_others_end_changes_nothing(tmp_path: Path) -> None:
    lost = 0
    for at in range(1, OPERATIONS):
        lives = both(tmp_path / "x", at, 10**9)
        assert problem(tmp_path / "x", lives) == "", f"held up before operation {at}"
        lost += lives[0].exit_code is None
        shutil.rmtree(tmp_path / "x")
    assert lost > OPERATIONS // 2, "it has lost the run wherever it was held up"


def test_each_of_two_is_held_up_somewhere(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    for _ in range(PAIRS):
        pair = chance.randint(1, OPERATIONS), chance.randint(1, OPERATIONS)
        lives = both(tmp_path / "x", *pair)
        assert problem(tmp_path / "x", lives) == "", f"held up before the operations {pair}"
        shutil.rmtree(tmp_path / "x")
