"""Preloaded by the zygote (multiprocessing's forkserver) of every agent, and imported nowhere else.

The zygote ends when its agent does, since it then reads the end of the forkserver's alive pipe. On its way out it
kills the process groups of the workers it forked: they would die with it anyway (`PR_SET_PDEATHSIG`), but their own
children (data loaders) would not.
"""

from __future__ import annotations

import atexit
import ctypes  # noqa: F401  what every worker needs at once
import gc
import os
import shutil
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from dtrain.common.processes import kill_group

ZYGOTE = os.getpid()
AGENT = os.getppid()


def end_workers() -> None:
    """Kill every process group that a child of this process leads."""
    if os.getpid() != ZYGOTE:
        return
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            kill_group(int(pid))
    if os.getppid() != AGENT:
        _remove_socket_folder()


def _remove_socket_folder() -> None:
    """multiprocessing leaves the removal of its temporary folder to the agent, which may have been killed."""
    server: Any = forkserver._forkserver
    folder = Path(server._forkserver_address or "").parent
    if folder.name.startswith("pymp-"):
        shutil.rmtree(folder, ignore_errors=True)


atexit.register(end_workers)
# Importing a framework makes objects that stay: looking for garbage among them takes a sixth of the time. Workers turn
# it on again.
gc.disable()
