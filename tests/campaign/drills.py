"""Every fault of `dtrain drill` under every strategy, and on real SLURM and Ray: the wide matrix of `make campaign`.

`python tests/campaign/drills.py --only ddp,mirrored`; prints a table for each, and at the end one with all of them in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from live import DTRAIN, RECIPES
from ray_lab import RayLab, ray_missing
from slurm_lab import SlurmLab, install_slurm

JOBS: dict[str, tuple[str, ...]] = {
    "ddp": ("digits_ddp.yaml",),
    "fsdp": ("digits_fsdp.yaml",),
    "hsdp": ("digits_hsdp.yaml",),
    "horovod": ("digits_horovod.yaml",),
    "mirrored": ("digits_mirrored.yaml",),
    "multi_worker_mirrored": ("digits_multi_worker.yaml",),
    "function": ("digits_function.yaml",),
    "script": ("script.yaml",),
    "two nodes": ("digits_ddp.yaml", "--nodes", "2"),
    "random": ("digits_ddp.yaml", "--random", "2s", "--steps", "2000", "--rounds", "3"),
}
MAIN = "kill,raise,segv,hang,agent,zygote,node,supervisor,preempt,drain,corrupt-checkpoint,network-cut,network-delay"
ON_CLUSTERS = {
    "slurm": ("digits_ddp.yaml", "--nodes", "2", "--cluster", "slurm", "--only", MAIN),
    "ray": ("digits_ddp.yaml", "--nodes", "2", "--cluster", "ray", "--only", MAIN),
}
Found = dict[str, Any]


def drilled(name: str, recipe: str, *options: str, folder: Path, environment: Mapping[str, str]) -> Found:
    """One drill, which prints its table; its result as data."""
    print(f"\n## {name}", flush=True)
    command = [*DTRAIN, "drill", str(RECIPES / recipe), "--budget", "30m", "--runs", str(folder), "--json", *options]
    done = subprocess.run(
        command, cwd="/", env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=False
    )
    found: Found = json.loads(done.stdout)
    for row in (found["undisturbed"], *found["faults"]):
        for one in row["broken"]:
            print(f"BROKEN {row['schedule']}: {one} ({row['run']})", flush=True)
    return found


def made(name: str, folder: Path) -> SlurmLab | RayLab:
    """A cluster that was just started."""
    return SlurmLab.start(folder / name) if name == "slurm" else RayLab.start()


@contextmanager
def clusters(wanted: Sequence[str], folder: Path) -> Iterator[dict[str, Mapping[str, str]]]:
    """Real clusters of this machine: name → the environment that reaches one; those that cannot be had are said and left out."""
    found: dict[str, Mapping[str, str]] = {}
    with ExitStack() as stack:
        for name, missing in (("slurm", install_slurm), ("ray", ray_missing)):
            if name not in wanted:
                continue
            if reason := missing():
                print(f"{name}: not drilled: {reason}")
                continue
            lab = made(name, folder)
            stack.callback(lab.stop)
            found[name] = lab.environment
        yield found


def cell(row: Found | None) -> str:
    """Of the table: the time to the next step, or how it ends."""
    if row is None or row["verdict"] == "not applicable":
        return ""
    if row["verdict"] != "kept":
        return f"**{row['verdict']}**"
    if row["exit_code"]:
        return "stops"
    return "goes on" if row["next_step_seconds"] is None else f"{row['next_step_seconds']:.2g} s"


def table(found: Mapping[str, Found]) -> str:
    """A row for each fault, a column for each job, in Markdown."""
    rows = {name: {row["fault"]: row for row in one["faults"]} for name, one in found.items() if name != "random"}
    faults = list(dict.fromkeys(fault for one in rows.values() for fault in one))
    lines = [
        ["fault", *rows],
        ["---"] * (len(rows) + 1),
        *([fault, *(cell(rows[name].get(fault)) for name in rows)] for fault in faults),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Drill; 1 if a promise broke anywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*JOBS, *ON_CLUSTERS]
    parser.add_argument("--only", default=",".join(names), help=f"of {', '.join(names)}")
    wanted = parser.parse_args().only.split(",")
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="drills-") as place, clusters(wanted, Path(place)) as reachable:
        for name in wanted:
            if name in JOBS:
                found[name] = drilled(name, *JOBS[name], folder=Path(place), environment={})
            elif name in reachable:
                found[name] = drilled(name, *ON_CLUSTERS[name], folder=Path(place), environment=reachable[name])
    print(f"\n{table(found)}")
    broken = [name for name, one in found.items() if not one["kept"]]
    print(f"\n{'broken: ' + ', '.join(broken) if broken else 'every promise was kept'}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
