"""What the runs of a test session keep warm for each other, so that a framework is not imported for each of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from dtrain.common.environment import WARM

FOLDER = "DTRAIN_TESTS_WARM"
"""The variable that says that this session has its folder; children of the session inherit it."""
SECONDS = 60
COLD: dict[str, Any] = {WARM: "", "XDG_RUNTIME_DIR": os.devnull}
"""Variables of a run that imports its framework itself: then all its processes are below the one that was started."""


def begun() -> Callable[[], None]:
    """From now on every child of this process that starts a run keeps warm what it imports; returns what ends that."""
    # A short name, since that of a socket has 107 bytes at most.
    folder, before = tempfile.mkdtemp(prefix="dtrain-tests-", dir="/tmp"), dict(os.environ)
    os.environ |= {FOLDER: folder, "XDG_RUNTIME_DIR": folder, WARM: f"{SECONDS}s"}

    def end() -> None:
        command = [sys.executable, "-P", "-m", "dtrain", "warm", "--end"]
        subprocess.run(command, check=False, capture_output=True, cwd="/")
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.clear()
        os.environ.update(before)

    return end
