"""Supervisors of one run on several machines in simulated time, for many seeds: `python tests/campaign/simulation.py --seeds 10000`.

A seed that fails is printed, and the same seed does the same again."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from simulated_run import World

EVERY = 1000
"""Seeds between two lines that say how far it is."""


def problem_of(seed: int) -> str:
    """What goes wrong with a seed; '' if nothing does."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="simulation-", dir=memory if memory.is_dir() else None) as folder:
        try:
            return World(seed, Path(folder)).run()
        except Exception as error:  # noqa: BLE001  it is what was looked for
            return f"{type(error).__name__}: {error}"


def main() -> int:
    """Print what was found; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    chosen = parser.parse_args()
    wrong = 0
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        if text := problem_of(seed):
            wrong += 1
            print(
                f"seed {seed}: {text}\n  again: python tests/campaign/simulation.py --seed {seed} --seeds 1", flush=True
            )
        if seed % EVERY == EVERY - 1:
            print(f"simulation: up to seed {seed}, {wrong} wrong", flush=True)
    print(f"simulation: {chosen.seeds} seeds from {chosen.seed}, {wrong} wrong", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
