"""What of a site's settings of sbatch holds."""

from __future__ import annotations

from dtrain.clusters.slurm.site_settings import environment_of_sbatch, left_out, sentences

SCRIPT = "#!/bin/bash\n#SBATCH --job-name=a-run\n#SBATCH --time=30\n#SBATCH '--output=/a b/log'\n#SBATCH --mem=4G\n#SBATCH --requeue\nexec x\n"


def test_settings_against_the_recipe_are_left_out_and_others_hold() -> None:
    site = {
        "SBATCH_TIMELIMIT": "1", "SBATCH_OUTPUT": "/dev/null", "SBATCH_ERROR": "/dev/null", "SBATCH_MEM_PER_CPU": "1", "SBATCH_NO_REQUEUE": "1",
        "SBATCH_JOB_NAME": "x", "SBATCH_WAIT": "1", "SBATCH_PARTITION": "site", "SBATCH_ACCOUNT": "site", "PATH": "/bin",
    }  # fmt: skip
    assert sorted(environment_of_sbatch(SCRIPT, site)) == ["PATH", "SBATCH_ACCOUNT", "SBATCH_PARTITION"]
    assert left_out(SCRIPT + "#SBATCH --partition=mine\n", site)[-2:] == ["SBATCH_TIMELIMIT", "SBATCH_WAIT"]
    assert "SBATCH_PARTITION" in left_out(SCRIPT + "#SBATCH --partition=mine\n", site)


def test_a_job_that_the_command_is_typed_in_says_nothing_of_the_new_one() -> None:
    inside = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_CONF": "/etc/slurm.conf",
    }
    assert environment_of_sbatch(SCRIPT, inside) == {"SLURM_CONF": "/etc/slurm.conf"}
    assert environment_of_sbatch(SCRIPT, {"SLURM_TIME_FORMAT": "relative", "SLURM_X": "1"}).keys() == {
        "SLURM_TIME_FORMAT",
        "SLURM_X",
    }


def test_every_setting_of_a_site_is_said() -> None:
    site = {"SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "physics", "SLURM_CONF": "/etc/slurm.conf"}
    assert sentences(SCRIPT, site) == [
        "SBATCH_ACCOUNT=physics holds, since the recipe says nothing of it",
        "SBATCH_TIMELIMIT=1 is left out: the recipe says otherwise",
    ]
