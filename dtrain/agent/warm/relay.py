"""Connects an agent's stdin and stdout to a warm agent of its node, which does the work. For clusters that end with a run everything
that the run started (steps of SLURM): there, warm agents live in a step of their own.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from dtrain.agent.warm import pool

CHUNK = 1 << 16
LOOK_SECONDS = 0.05


def canonical(arguments: Sequence[str]) -> list[str]:
    """The command of an agent with these arguments, RUN and `--node=NAME` first, as `warm_pool.key` looks at it."""
    run, *options = arguments
    names = [word for word in options if word.startswith("--node=")]
    others = [word for word in options if not word.startswith("--node=")]
    return [sys.executable, "-P", "-m", "dtrain", "agent", run, names[-1], *others]


def relayed(
    seconds: float, arguments: Sequence[str], run_variables: Mapping[str, str], commands: int, events: int
) -> bool:
    """Look for a warm agent for so long, and relay to it until it is done with the run; False: there is none."""
    command = canonical(arguments)
    found_by = pool.key(command, os.environ, run_variables)
    until = time.monotonic() + seconds
    while not (agent := pool.take(found_by, command, os.environ)):
        if time.monotonic() >= until:
            return False
        time.sleep(LOOK_SECONDS)
    threading.Thread(target=_down, args=(commands, agent), daemon=True).start()
    for line in agent.stdout:
        os.write(events, line)
    return True


def _down(commands: int, agent: pool.WarmAgent) -> None:
    with suppress(OSError):
        while data := os.read(commands, CHUNK):
            agent.stdin.write(data)
    agent.stdin.close()
