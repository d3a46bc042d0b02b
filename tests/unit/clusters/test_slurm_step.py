"""The environment that `srun` gets."""

from __future__ import annotations

from dtrain.clusters.slurm.step import environment_of_step


def test_a_step_has_the_processors_of_the_job() -> None:
    found = environment_of_step({"SLURM_CPUS_PER_TASK": "8", "SLURM_LABELIO": "1", "PATH": "/bin"})
    assert found == {"SLURM_CPUS_PER_TASK": "8", "SRUN_CPUS_PER_TASK": "8", "PATH": "/bin"}
    assert environment_of_step({"SLURM_CPUS_PER_TASK": "8", "SRUN_CPUS_PER_TASK": "4"})["SRUN_CPUS_PER_TASK"] == "4"
    assert "SRUN_CPUS_PER_TASK" not in environment_of_step({})
