"""Settings of sbatch in the environment, which win over a script's own lines (sbatch(1), "Input Environment Variables"): those of the
site hold where the recipe is silent, and only there."""

from __future__ import annotations

import re
from collections.abc import Mapping

OPTION = re.compile(r"^#SBATCH ['\"]?--(?P<name>[a-z][a-z-]*)", re.MULTILINE)
OTHER_NAMES = {
    "time": ("SBATCH_TIMELIMIT",),
    "mem": ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"),
    "gres": ("SBATCH_GRES", "SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK"),
    "gpus-per-node": ("SBATCH_GPUS_PER_NODE", "SBATCH_GPUS", "SBATCH_GPUS_PER_TASK", "SBATCH_GRES"),
    "requeue": ("SBATCH_REQUEUE", "SBATCH_NO_REQUEUE"),
    "output": ("SBATCH_OUTPUT", "SBATCH_ERROR"),
}
"""Option → its variables, where that is not `SBATCH_` and the option's name."""
NEVER = ("SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_INPUT", "SBATCH_IMMEDIATE", "SBATCH_TEST_ONLY")
"""Variables that would have sbatch wait, or start a run several times or not at all."""
KEPT_OF_A_JOB = ("SLURM_CONF", "SLURM_TIME_FORMAT", "SLURM_EXIT_ERROR", "SLURM_CLUSTERS", "SLURM_DEBUG_FLAGS")
"""Settings of SLURM's commands; every other variable of this kind describes the job that the command is typed in."""


def left_out(script: str, environment: Mapping[str, str]) -> list[str]:
    """Pure. The variables that say otherwise than this batch script, or would make something else of it."""
    own = [match["name"] for match in OPTION.finditer(script)]
    against = {
        name for option in own for name in OTHER_NAMES.get(option, (f"SBATCH_{option.replace('-', '_').upper()}",))
    }
    return sorted(name for name in environment if name in against or name in NEVER)


def refusals(script: str, environment: Mapping[str, str]) -> list[str]:
    """Pure. Return a sentence for each variable that is left out."""
    return [
        f"{name}={environment[name]} is left out: the recipe says otherwise" for name in left_out(script, environment)
    ]


def sentences(script: str, environment: Mapping[str, str]) -> list[str]:
    """Pure. Return for each setting of sbatch in the environment whether it holds."""
    held = {name for name in environment if name.startswith("SBATCH_")} - set(left_out(script, environment))
    holds = [f"{name}={environment[name]} holds, since the recipe says nothing of it" for name in held]
    return sorted([*refusals(script, environment), *holds])


def environment_of_sbatch(script: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Pure. Return the environment for sbatch, which becomes that of the job."""
    dropped = set(left_out(script, environment))
    if "SLURM_JOB_ID" in environment:
        dropped |= {name for name in environment if name.startswith("SLURM_") and name not in KEPT_OF_A_JOB}
    return {name: value for name, value in environment.items() if name not in dropped}
