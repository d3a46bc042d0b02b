"""Supervisors of one run on several machines, held up anywhere, with wrong clocks and killed workers, in simulated time: 200 seeds, each of which
can be run again: `python tests/campaign/simulation.py --seed N --seeds 1`."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated_run import World

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
