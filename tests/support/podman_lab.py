"""Podman with a store of its own in a folder of the test, and an image with nothing in it: what runs in it comes by mounts."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import debian

PACKAGES = ("podman", "runc")
IMAGE = "localhost/empty"
CONTAINERS = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4000:4000"]
[engine]
runtime = "runc"
"""
"""Limits that a root without CAP_SYS_RESOURCE may set, and a runtime that takes cgroups of both versions at once."""
STORAGE = """\
[storage]
driver = "vfs"
graphroot = "{folder}/store"
runroot = "{folder}/state"
"""


def missing() -> str | None:
    """Return what is not installed; None if nothing."""
    found = [program for program in PACKAGES if not shutil.which(program)]
    return f"not installed: {', '.join(found)} (Debian: apt-get install {' '.join(PACKAGES)})" if found else None


def started(folder: Path) -> dict[str, str]:
    """Make the store with its image; returns the environment of a person who uses it. Raises `RuntimeError` where podman runs nothing."""
    if problem := debian.install(missing, PACKAGES):
        raise RuntimeError(problem)
    folder.mkdir(parents=True)
    (folder / "containers.conf").write_text(CONTAINERS)
    (folder / "storage.conf").write_text(STORAGE.format(folder=folder))
    environment = {
        "CONTAINERS_CONF": str(folder / "containers.conf"), "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }  # fmt: skip
    with tarfile.open(folder / "image.tar", "w") as archive:
        for name in ("tmp", "proc", "sys", "dev"):
            made = tarfile.TarInfo(name)
            made.type, made.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(made)
    try_it = [
        "run",
        "--rm",
        "--net=host",
        "--ipc=host",
        "--pid=host",
        *(f"-v={one}:{one}" for one in of_the_system()),
        IMAGE,
        "true",
    ]
    for words in (["import", str(folder / "image.tar"), IMAGE], try_it):
        done = subprocess.run(
            ["podman", *words], env=os.environ | environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"podman runs nothing here: {done.stderr.strip()[-300:]}")
    return environment


def of_the_system() -> list[str]:
    """List the folders that programs of this machine need."""
    return [path for path in ("/usr", "/lib", "/lib64", "/bin", "/etc") if Path(path).exists()]
