"""A sitecustomize.py under which the file of a run's lock cannot be locked, as on a file system without locks."""

from __future__ import annotations

NO_LOCKS = """
import errno, fcntl, os
lock = fcntl.flock
def flock(file, how):
    number = file if isinstance(file, int) else file.fileno()
    if os.readlink(f"/proc/self/fd/{number}").endswith("supervisor.lock"):
        raise OSError(errno.ENOLCK, "No locks available")
    lock(file, how)
fcntl.flock = flock
"""
