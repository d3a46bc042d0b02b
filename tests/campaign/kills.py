"""Random faults against real runs: workers, agents, zygotes and the supervisor are killed at random moments, and the end must equal
that of an undisturbed run, bit for bit and sample for sample.

`python tests/campaign/kills.py --strategy ddp --rounds 20 --seed 7`; a failing round is printed as the command that repeats it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from live import PROGRAMS, Live, process_tree, start

STRATEGIES = {
    "ddp": ("tiny.yaml", ()),
    "fsdp": ("tiny.yaml", ("--set", "strategy=fsdp", "--set", "params.norm=false")),
    "hsdp": ("tiny.yaml", ("--set", "strategy=hsdp", "--set", "strategy.replicas=2", "--set", "params.norm=false")),
    "horovod": ("tiny.yaml", ("--set", "strategy=horovod")),
    "mirrored": ("contract_tensorflow.yaml", ("--set", "strategy=mirrored")),
    "multi_worker_mirrored": ("contract_tensorflow.yaml", ("--set", "strategy=multi_worker_mirrored")),
}
TARGETS = ("worker", "worker", "agent", "zygote", "template", "supervisor")
MOST_FAULTS = 4
STEPS = 60
COMMON = (
    "--set", f"train.steps={STEPS}", "--set", "checkpoint.every_steps=7", "--set", "params.pause=0.02",
    "--set", "recovery.restarts=50", "--set", "resources.workers=2",
)  # fmt: skip


class Round:
    """One run with random faults."""

    def __init__(self, strategy: str, seed: int, number: int, folder: Path) -> None:
        self.name = f"round {number}"
        self.command = f"python tests/campaign/kills.py --strategy {strategy} --seed {seed} --round {number}"
        recipe, options = STRATEGIES[strategy]
        self._arguments = (str(PROGRAMS / recipe), *options, *COMMON)
        self._random = random.Random(f"{strategy}-{seed}-{number}")
        self._folder = folder / f"{strategy}-{number}"

    def run(self) -> Live:
        """The run at its end."""
        faults = [
            (self._random.uniform(0.2, 6.0), self._random.choice(TARGETS))
            for _ in range(self._random.randint(1, MOST_FAULTS))
        ]
        with started("run", *self._arguments, folder=self._folder) as live:
            ended = self._disturb(live, faults)
        while not ended:
            with started("resume", "last", folder=self._folder) as live:
                ended = self._disturb(live, [])
        return live

    def _disturb(self, live: Live, faults: list[tuple[float, str]]) -> bool:
        """Whether the run came to its end; False: its supervisor was killed. Before there is a run folder nothing is killed,
        as nothing could be resumed."""
        live.run  # noqa: B018
        for pause, target in faults:
            time.sleep(pause)
            if live.process.poll() is not None:
                break
            victims = self._victims(live, target)
            if victims:
                victim = self._random.choice(victims)
                print(f"  {self.name}: kill -9 of a {target}", flush=True)
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        code = live.process.wait(300)
        assert code in (0, -signal.SIGKILL), f"exit code {code}: {live.process.communicate()}"
        return code == 0

    def _victims(self, live: Live, target: str) -> list[int]:
        if target == "supervisor":
            return [live.process.pid]
        live.see()
        names = {one: f"dtrain-{one}" for one in TARGETS} | {"worker": "dtrain-rank"}
        return [pid for pid in sorted(process_tree(live.process.pid)) if _name(pid).startswith(names[target])]


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@contextmanager
def started(command: str, *arguments: str, folder: Path) -> Iterator[Live]:
    """See `live.start`."""
    with start(*arguments, runs=folder, command=command) as live:
        yield live


def main() -> int:
    """Run the rounds; the number of failed ones is printed and decides the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=[*STRATEGIES, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round", type=int, help="only this one")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    failed: list[str] = []
    done = 0
    for strategy in list(STRATEGIES) if given.strategy == "all" else [given.strategy]:
        with tempfile.TemporaryDirectory(prefix="campaign-") as place:
            folder = Path(place)
            recipe, options = STRATEGIES[strategy]
            with started(
                "run", str(PROGRAMS / recipe), *options, *COMMON, folder=folder / "undisturbed"
            ) as undisturbed:
                undisturbed.run  # noqa: B018
                assert undisturbed.process.wait(300) == 0, undisturbed.process.communicate()
            for number in range(given.rounds) if given.round is None else [given.round]:
                one = Round(strategy, given.seed, number, folder)
                done += 1
                try:
                    live = one.run()
                    assert live.weights() == undisturbed.weights(), "the weights differ from the undisturbed run's"
                    live.assert_clean_audit(STEPS)
                except AssertionError as error:
                    failed.append(one.command)
                    print(f"FAILED {strategy} {one.name}: {str(error)[:2000]}\n  repeat it: {one.command}", flush=True)
                else:
                    print(f"{strategy} {one.name}: bit-identical, audit clean", flush=True)
    print(f"{done - len(failed)} of {done} rounds ended as if nothing had happened (seed {given.seed})")
    print("\n".join(failed))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
