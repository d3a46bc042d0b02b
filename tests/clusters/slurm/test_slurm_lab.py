"""The SLURM cluster of the tests works, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_until
from slurm_lab import SlurmLab, install_slurm


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    problem = install_slurm()
    if problem is not None:
        pytest.skip(problem)
    with SlurmLab.start(tmp_path_factory.mktemp("slurm"), nodes=4) as running:
        yield running


def submit(lab: SlurmLab, *options: str, script: str) -> str:
    output = lab.folder / "job.txt"
    done = lab.run("sbatch", "--parsable", "--open-mode=append", "-o", str(output), *options, "--wrap", script)
    return done.stdout.strip()


def test_srun_starts_one_task_on_each_of_two_nodes_with_its_gpus(lab: SlurmLab) -> None:
    show = "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    shown = lab.run("srun", "-N2", "--gpus-per-node=2", "sh", "-c", show).stdout
    assert sorted(shown.splitlines()) == ["node1 0,1", "node2 0,1"]
    assert lab.run("srun", "-N2", "hostname").stdout.count("\n") == 2


def test_steps_and_tasks_are_told_apart_by_node(lab: SlurmLab) -> None:
    job = submit(lab, "-N2", script="srun sleep 60")
    lab.wait_for_job(job, "RUNNING")
    wait_until(
        lambda: (len(lab.step_pids("node1")), len(lab.step_pids("node2"))) == (2, 1), 30, "the step does not run"
    )
    wait_until(lambda: bool(lab.task_pids("node2")), 10, "the task does not run")
    assert not lab.step_pids("node1") & lab.step_pids("node2")
    assert not lab.step_pids("node3")
    assert not lab.task_pids("node3")
    lab.run("scancel", job)
    lab.wait_for_job(job, "CANCELLED")


def test_the_urgent_partition_preempts_with_a_warning_and_requeues(lab: SlurmLab) -> None:
    script = "trap 'echo warned' USR1; echo start ${SLURM_RESTART_COUNT:-0}; while :; do sleep 0.1; done"
    job = submit(lab, "-N4", "--exclusive", "--signal=B:USR1@30", script=script)
    # A signal that comes before the trap ends the job.
    wait_until(lambda: marks(lab) == ["start 0"], 60, "the job does not run")
    assert lab.run("srun", "-N4", "-p", "urgent", "true").returncode == 0
    wait_until(lambda: marks(lab) == ["start 0", "warned", "start 1"], 60, "it did not start again")
    lab.run("scancel", job)
    lab.wait_for_job(job, "CANCELLED")


def marks(lab: SlurmLab) -> list[str]:
    """What the preempted job wrote, without SLURM's own remarks."""
    path = lab.folder / "job.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.startswith(("start ", "warned"))]


def test_a_killed_node_goes_down_and_comes_back(lab: SlurmLab) -> None:
    lab.kill_node("node2")
    assert lab.daemon_pid("node2") is None
    lab.wait_for_state("node2", "down", seconds=60)
    assert lab.states()["node1"] == "idle"
    lab.start_node("node2")
    lab.wait_for_state("node2", "idle")


def test_a_crashed_node_takes_its_tasks_with_it(lab: SlurmLab) -> None:
    job = submit(lab, "-N1", "-w", "node3", "--no-requeue", script="sleep 60")
    lab.wait_for_job(job, "RUNNING")
    lab.crash_node("node3")
    assert not lab.task_pids("node3")
    assert not lab.step_pids("node3")
    lab.start_node("node3")
    lab.run("scancel", job)
    lab.wait_for_job(job, "CANCELLED")
    lab.wait_for_state("node3", "idle")


def test_stop_leaves_no_process(tmp_path: Path) -> None:
    problem = install_slurm()
    if problem is not None:
        pytest.skip(problem)
    with SlurmLab.start(tmp_path, nodes=2) as lab:
        job = submit(lab, "-N2", script="trap '' TERM; srun sh -c 'trap \"\" TERM; sleep 100; sleep 100'; sleep 100")
        lab.wait_for_job(job, "RUNNING")
        lab.kill_node("node2")
        assert lab.pids()
    assert lab.pids() == set()
    lab.stop()


@pytest.mark.parametrize("name", ["a b", "a,b", "a%b", "a=b", "x" * 80])
def test_a_folder_that_slurm_cannot_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="SLURM takes no"):
        SlurmLab.start(tmp_path / name)
