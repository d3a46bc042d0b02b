"""Debian packages that tests need: installed where they are missing and this process may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence


def install(missing: Callable[[], str | None], packages: Sequence[str]) -> str | None:
    """Install packages if `missing` says that something is; returns why it is still missing, or None."""
    problem = missing()
    if problem is None:
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"{problem}; only root on Debian or Ubuntu can install it from here"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run([*apt, *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{problem}; apt-get {command[0]} failed: {done.stderr.strip()[-500:]}"
    return missing()
