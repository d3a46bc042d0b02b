"""A forked worker is made what it would be if Python had just started: the one place that knows what a fork leaves behind."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dtrain.common.processes import STACKS_SIGNAL

DEFAULT_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def restore(log: Path) -> None:
    """Write to this log from now on, handle signals as Python does, and draw randomness of this process's own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        # Block-buffered output would lose the last lines of a killed worker.
        stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in DEFAULT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    faulthandler.enable(file=2, all_threads=True)
    faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)
    gc.freeze()
    gc.enable()
    multiprocessing.current_process().authkey = os.urandom(32)
    # The zygote drew these seeds once for all; `random` does this by itself after a fork.
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()


def started_in(folder: str) -> None:
    """Processes that the user's code spawns look for relative paths where this one was started."""
    settings: Any = multiprocessing.process
    if not hasattr(settings, "ORIGINAL_DIR"):
        raise RuntimeError(f"multiprocessing of Python {sys.version} does not remember where it was started")
    settings.ORIGINAL_DIR = folder
