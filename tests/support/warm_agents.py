"""Warm agents that the runs of a test session share, so that a framework is not imported for each of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

from dtrain.common.environment import WARM

FOLDER = "DTRAIN_TESTS_WARM"
"""The variable that names the folder in which they listen. Agents do not compare variables that begin like this one."""
SECONDS = 60


def environment() -> dict[str, str]:
    """This process's environment for a run that takes a warm agent if there is one, and leaves it or its own behind."""
    # An agent serves runs of an equal environment only, and pytest puts the name of the test into it.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return kept | {"XDG_RUNTIME_DIR": os.environ[FOLDER], WARM: f"{SECONDS}s"}


def prepared() -> Callable[[], None]:
    """Make the folder for this process and its children; returns what ends the agents and removes it."""
    # A short name, since that of a socket has 107 bytes at most.
    folder = os.environ[FOLDER] = tempfile.mkdtemp(prefix="dtrain-tests-", dir="/tmp")

    def end() -> None:
        command = [sys.executable, "-P", "-m", "dtrain", "warm", "--end"]
        subprocess.run(command, env=environment(), check=False, capture_output=True, cwd="/")
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ[FOLDER]

    return end
