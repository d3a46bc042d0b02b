"""`--warm` inside an allocation (salloc): a step of its own holds residents on its nodes, which keep what they have imported for one run after
the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dtrain.agent.warm import pool
from dtrain.common import durations
from dtrain.common import environment as variables
from dtrain.common.processes import alive, command_line

from .commands import addresses
from .step import AgentLaunch

START_SECONDS = 15.0
"""Longest wait for the residents of a new step."""
FOUND_SECONDS = 1.0
"""Longest wait for the residents of an old step."""
_steps: list[subprocess.Popen[bytes]] = []
"""The steps of residents, which outlive this process; it collects their exit statuses."""


def agent(
    command: list[str], run_variables: Mapping[str, str], nodes: Sequence[str], container: Sequence[str]
) -> list[str]:
    """The command of the agents of a run: as it is, or with how long they wait for residents, which are started if there are none."""
    seconds = durations.seconds_of(os.environ.get(variables.WARM, ""))
    if not seconds and not pool.in_use():
        return command
    place = command.index("agent") + 1
    # What the residents of its nodes have imported depends on the options of the agents but for the run's.
    options = [word for word in command[place + 1 :] if not word.startswith(("--node=", "--supervisor="))]
    key = pool.key(options, os.environ | run_variables)
    try:
        marker = pool.folder() / f"slurm-{os.environ.get('SLURM_JOB_ID')}-{key}.pid"
        waits = FOUND_SECONDS if _holds(marker) else START_SECONDS
        if waits == START_SECONDS:
            if not seconds:
                return [*command, "--look=0"]
            marker.write_text(str(_hold(seconds, command, place, nodes, container)))
    except OSError as error:
        print(f"dtrain: nothing can stay warm: {error}", file=sys.stderr)
        return [*command, "--look=0"]
    return [*command, f"--look={waits:g}"]


def _holds(marker: Path) -> bool:
    """Whether the step that left this marker is there."""
    try:
        pid = int(marker.read_text())
    except (OSError, ValueError):
        return False
    return alive(pid) and pool.HOLD in command_line(pid)


def _hold(seconds: float, command: Sequence[str], place: int, nodes: Sequence[str], container: Sequence[str]) -> int:
    """Start the step, which outlives this process; the process id of its srun."""
    held = (*command[:place], pool.HOLD, str(seconds), *command[place:])
    launch = AgentLaunch(tuple(nodes), held, tuple(container), addresses(list(nodes)))
    process = subprocess.Popen(
        launch.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd="/",
    )  # fmt: skip
    _steps.append(process)
    return process.pid
