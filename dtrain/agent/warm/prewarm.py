"""Starts one agent process early, in parallel with recipe parsing, to hide interpreter start-up.

`dtrain run` starts it first; a cluster of agents on this machine takes it, and it ends by itself if none does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

OPTION = "--spare"
_started: list[subprocess.Popen[bytes]] = []


def start() -> None:
    """Start a spare agent; it waits on its stdin."""
    command = [sys.executable, "-P", "-m", "dtrain", "agent", OPTION]
    _started.append(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/")
    )


def take(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    """The spare agent, told to be what `command` would have started; None if there is none, or it is no agent's."""
    if not _started or "agent" not in command:
        return None
    process = _started.pop()
    arguments = command[command.index("agent") + 1 :]
    assert process.stdin is not None
    process.stdin.write(json.dumps({"arguments": arguments, "environment": dict(environment)}).encode() + b"\n")
    process.stdin.flush()
    return process


def discard() -> None:
    """End an agent that was started early and is not wanted: it ends when its stdin closes."""
    while _started:
        process = _started.pop()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def wait(commands: int) -> list[str] | None:
    """Wait, in the spare agent, for its arguments, and set its environment; None if the agent is not needed.

    Reads byte by byte: what follows the line belongs to the agent."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(commands, 1)
        if not byte:
            return None
        line += byte
    given = json.loads(line)
    os.environ.clear()
    os.environ.update(given["environment"])
    arguments: list[str] = given["arguments"]
    return arguments
