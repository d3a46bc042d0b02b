"""On clusters of several nodes, from submission to the first training step and from `kill -9` of a worker to the next one:
on SLURM against `srun torchrun`, on Ray against Ray Train, with the same loop on all sides.

A peer that hangs in a restart has a time limit, and what did not recover within it is reported.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from recovery import LIMIT_SECONDS, STEPS, recoveries, steps_of
from side_by_side import BIN, PROGRAMS, Row, dtrain, scratch, table

# Where the tests keep their clusters.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from processes import free_ports, wait_until
from ray_lab import RayLab, ray_missing
from slurm_lab import SlurmLab, install_slurm

NODES, WORKERS = 2, 4
START_NEEDED, RECOVERY_NEEDED = 1.0, 0.2
SETTLE_SECONDS = 60.0
# A script's checkpoints are its own: dtrain sees no progress between two kills, and neither budget nor pauses are measured here.
RECOVERY = "recovery: {restarts: 1000, backoff_seconds: 0}\n"
SBATCH = """\
#!/bin/bash
#SBATCH --nodes={nodes} --ntasks-per-node=1 --cpus-per-task={each} --output={folder}/slurm.out
# torchrun at its best: by default restarted ranks find the dead ones' addresses in the agents' store, and mostly hang.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# Names of the lab's nodes do not resolve; their addresses end in their numbers.
exec srun {torchrun} --nnodes={nodes} --nproc-per-node={each} --max-restarts=5 --rdzv-id=$SLURM_JOB_ID \\
  --rdzv-backend=c10d --rdzv-endpoint=127.0.2.${{SLURMD_NODENAME#node}}:{port} {program} {folder} {steps}
"""


@dataclass
class Side:
    """A launcher on a cluster, and what was measured of it."""

    command: Callable[[Path], list[str]]
    """Submits the program, which works in this folder."""
    starts: list[float | None] = field(default_factory=list)
    """From submission to the first step, None where none came in time."""
    recoveries: list[float | None] = field(default_factory=list)
    """From a kill to the next step, likewise."""

    def measure(self, folder: Path, kills: int) -> None:
        """One run, whose rank 1 is killed repeatedly."""
        folder.mkdir()
        command = self.command(folder)
        began = time.time()
        recovered = recoveries(command, folder, kills)
        steps = steps_of(folder / "log")
        self.starts.append(steps[0][2] - began if steps else None)
        self.recoveries += recovered if steps else []


@dataclass(frozen=True)
class Contest:
    """dtrain and its peer on one running cluster."""

    cluster: str
    peer: str
    ours: Side
    theirs: Side
    settle: Callable[[], None]
    """Waits until nothing of the last run is left on the cluster."""


def managed(cluster: str, environment: Mapping[str, str]) -> Side:
    """`dtrain run` of the script as it is."""

    def command(folder: Path) -> list[str]:
        run = dtrain(folder, "steps.py", WORKERS, [str(folder), str(STEPS)], RECOVERY)
        return within(environment, *run, "--cluster", cluster, "--nodes", str(NODES))

    return Side(command)


def within(environment: Mapping[str, str], *command: str) -> list[str]:
    """The command with what it needs to find the cluster."""
    return ["env", *(f"{name}={value}" for name, value in environment.items()), *command]


@contextmanager
def on_slurm() -> Iterator[Contest]:
    """A cluster of real daemons, and torchrun in a batch script."""

    def batch(folder: Path) -> list[str]:
        script = folder / "job.sh"
        script.write_text(
            SBATCH.format(
                nodes=NODES, each=WORKERS // NODES, folder=folder, torchrun=BIN / "torchrun", port=free_ports(1)[0],
                program=PROGRAMS / "steps.py", steps=STEPS,
            )
        )  # fmt: skip
        return within(lab.environment, "sbatch", str(script))

    def settle() -> None:
        lab.run("scancel", *lab.run("squeue", "-h", "-o", "%A").stdout.split(), check=False)
        wait_until(lambda: set(lab.states().values()) == {"idle"}, SETTLE_SECONDS, "some nodes are not idle")
        wait_until(lambda: not any(map(lab.task_pids, lab.nodes)), SETTLE_SECONDS, "processes are left")

    # A short folder in /tmp: SLURM's sockets are in it.
    with tempfile.TemporaryDirectory(prefix="dtrain-bench-", dir="/tmp") as name, SlurmLab.start(Path(name)) as lab:
        yield Contest("SLURM", "srun torchrun", managed("slurm", lab.environment), Side(batch), settle)


@contextmanager
def on_ray() -> Iterator[Contest]:
    """A cluster of three nodes, and Ray Train's TorchTrainer in a script of its own."""

    def trainer(folder: Path) -> list[str]:
        program = [sys.executable, str(PROGRAMS / "cluster_ray_train.py"), str(folder), str(STEPS), str(WORKERS)]
        return within(lab.environment, *program)

    def settle() -> None:
        wait_until(lambda: not groups(lab), SETTLE_SECONDS, "placement groups are left")

    with RayLab.start(nodes=3, cpus=2) as lab:
        yield Contest("Ray", "Ray Train", managed("ray", lab.environment), Side(trainer), settle)


def groups(lab: RayLab) -> int:
    """Placement groups that are not removed."""
    listed = lab.call("/api/v0/placement_groups?limit=1000")["data"]["result"]["result"]
    return sum(group["state"] != "REMOVED" for group in listed)


def missing(cluster: str) -> str | None:
    """Why a cluster or its peer cannot be had here."""
    if cluster == "slurm":
        return install_slurm()
    needs = ("pandas", "pyarrow", "tensorboardX")
    installed = all(map(importlib.util.find_spec, needs))
    return ray_missing() or (None if installed else "Ray Train is not installed (pip install 'ray[train]')")


def compete(contest: Contest, rounds: int, kills: int, folder: Path) -> None:
    """Both in turn; the peer gets one kill a round, since it may hang."""
    for number in range(rounds + 1):
        for name, side, share in (("ours", contest.ours, kills), ("theirs", contest.theirs, 1)):
            side.measure(folder / f"{contest.cluster}-{name}-{number}", share)
            contest.settle()


def compared(contest: Contest, ours: list[float | None], theirs: list[float | None], needed: float) -> list[Row]:
    """Medians of what came in time, and how many did; no row where none did."""
    good, peers = ([seconds for seconds in side if seconds is not None] for side in (ours, theirs))
    note = f"dtrain {len(good)} of {len(ours)}, {contest.peer} {len(peers)} of {len(theirs)} within {LIMIT_SECONDS:g} s"
    if not (good and peers):
        print(f"{contest.cluster}: {note}\n")
        return []
    title = f"{contest.cluster}, against {contest.peer}"
    return [Row(title, statistics.median(good), statistics.median(peers), needed, note)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side that count, on each cluster")
    parser.add_argument("--kills", type=int, default=5, help="kills in each run under dtrain; the peers get one")
    parser.add_argument("--only", choices=CLUSTERS)
    options = parser.parse_args()
    # The same network for all: gloo looks up the host's name, which in the labs is every node's.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    starts, recovered = list[Row](), list[Row]()
    for cluster in [options.only] if options.only else CLUSTERS:
        if problem := missing(cluster):
            print(f"{cluster} is left out: {problem}\n")
            continue
        with scratch() as name, CLUSTERS[cluster]() as contest:
            compete(contest, options.rounds, options.kills, Path(name))
            ours, theirs = contest.ours, contest.theirs
            # The first start reads everything from the disk.
            starts += compared(contest, ours.starts[1:], theirs.starts[1:], START_NEEDED)
            recovered += compared(contest, ours.recoveries, theirs.recoveries, RECOVERY_NEEDED)
    print(table("From submission to the first training step, 4 workers on 2 nodes (median)", "peer", starts))
    print("\n" + table("From `kill -9` of rank 1 to the next training step (median)", "peer", recovered))


CLUSTERS = {"slurm": on_slurm, "ray": on_ray}

if __name__ == "__main__":
    main()
