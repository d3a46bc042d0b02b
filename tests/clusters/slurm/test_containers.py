"""Runs whose agents and workers are in real containers, on a real SLURM cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import podman_lab
import pytest
from live import PROGRAMS, dtrain, finished, start
from processes import wait_until
from slurm_lab import SlurmLab, install_slurm

RECIPE = str(PROGRAMS / "contract_torch.yaml")
TWO = ("--workers", "2", "--nodes", "2", "--set", "train.steps=20")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    if problem := install_slurm():
        pytest.skip(problem)
    with SlurmLab.start(tmp_path_factory.mktemp("lab"), nodes=2) as running:
        yield running


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    try:
        return podman_lab.started(tmp_path_factory.mktemp("podman") / "lab")
    except RuntimeError as why:
        pytest.skip(str(why))


def options(folder: Path) -> list[str]:
    """A container with the Python of this test, and a file that is nowhere else."""
    (folder / "only-inside").write_text("yes")
    packages = [path for path in sys.path if path.endswith("-packages") and not path.startswith(sys.prefix)]
    mounts = [*podman_lab.of_the_system(), sys.prefix, sys.base_prefix, *packages, f"{folder}/only-inside:/only-inside"]
    container = {"image": podman_lab.IMAGE, "runtime": "podman", "python": sys.executable, "mounts": mounts}
    return ["--cluster", "slurm", "--set", f"cluster.container={json.dumps(container)}"]


def test_a_run_in_containers_gives_the_weights_of_one_without(
    lab: SlurmLab, podman: dict[str, Any], tmp_path: Path
) -> None:
    runs, chosen = tmp_path / "runs", options(tmp_path)
    there: dict[str, Any] = podman | lab.environment
    inside = finished(RECIPE, *TWO, *chosen, runs=runs, **there)
    outside = finished(RECIPE, *TWO, runs=tmp_path / "outside")
    assert inside.weights() == outside.weights()
    images = {event["versions"]["image"] for event in inside.events("node_checked")}
    assert len(images) == 1
    assert next(iter(images)).startswith(f"{podman_lab.IMAGE}@sha256:")
    report = json.loads(dtrain("report", inside.run.id, "--json", "--runs", str(runs)).stdout)
    assert report["origin"]["container"] in images


def test_the_workers_are_inside_and_nothing_of_them_stays(
    lab: SlurmLab, podman: dict[str, Any], tmp_path: Path
) -> None:
    recipe = tmp_path / "project" / "looks.yaml"
    recipe.parent.mkdir()
    recipe.write_text("script: looks.py\nstrategy: script\n")
    recipe.with_name("looks.py").write_text(
        "import time\nprint('inside', open('/only-inside').read(), flush=True)\ntime.sleep(600)\n"
    )
    runs = tmp_path / "runs"
    with start(str(recipe), *TWO[:4], *options(tmp_path), runs=runs, **lab.environment, **podman) as live:
        logs = [live.run.logs / f"rank-0000{rank}.log" for rank in (0, 1)]
        wait_until(lambda: all(log.exists() and "inside yes" in log.read_text() for log in logs), 120, "not inside")
        pids = {int(pid) for event in live.events("workers_started") for pid in event["pids"].values()}
        assert all(Path(f"/proc/{pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink() for pid in pids)
        submitted = live.run.submitted()
        assert submitted
        lab.run("scancel", submitted.reference)
        live.process.communicate(timeout=60)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30, "workers are left")
    wait_until(lambda: not lab.run("squeue", "-h").stdout, 30, "a job is left")
