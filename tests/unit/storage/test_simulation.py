"""Supervisors of one run on several machines, held up anywhere, with wrong clocks and killed workers, in simulated time: 200 seeds, each of which
can be run again: `python tests/campaign/simulation.py --seed N --seeds 1`."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_run import World

from dtrain.common.errors import DtrainError
from dtrain.record.lock import Lease
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore

SEEDS = 200
ROUND = 20


@pytest.mark.parametrize("first", range(0, SEEDS, ROUND))
def test_whatever_is_held_up_every_promise_is_kept(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + ROUND):
        folder = tmp_path / str(seed)
        folder.mkdir()
        problem = World(seed, folder).run()
        assert not problem, f"seed {seed}: {problem}"


def test_a_seed_gives_the_same_order_again(tmp_path: Path) -> None:
    steps = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        world = World(7, tmp_path / name)
        world.run()
        steps.append((world.simulation.steps, world.simulation.now, world.claims))
    assert steps[0] == steps[1]


def test_without_the_fencing_token_it_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows that the simulation looks where it hurts."""
    monkeypatch.setattr(run_lease.RunClaim, "check", lambda self: None)
    for seed in range(SEEDS):
        (tmp_path / str(seed)).mkdir()
        try:
            if World(seed, tmp_path / str(seed)).run():
                return
        except (AssertionError, DtrainError):
            return
    raise AssertionError("nothing was found")


def test_a_number_that_was_given_and_deleted_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is held up between its look at the newest claim and its own; the simulation found it."""
    store, lease = ObjectStore(f"file://{tmp_path}/there", {}), Lease(Path("claims"), 1, "held up")
    monkeypatch.setattr(run_lease, "age_seconds", lambda _: 3600.0)
    for mark in ("first", "second"):
        assert run_lease.take(store, Lease(Path("claims"), 1, mark))
    answers, real = [0], run_lease.newest
    monkeypatch.setattr(run_lease, "newest", lambda remote: answers.pop() if answers else real(remote))
    assert run_lease.take(store, lease) is None
    assert list(store.sizes("supervisors")) == ["supervisors/00000002"]
