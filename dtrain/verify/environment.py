"""`dtrain reproduce --venv`: a virtual environment of the Python and the packages that a run recorded, made once and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import NoReturn

from dtrain.common import installation
from dtrain.common.errors import UsageError
from dtrain.common.files import PRIVATE_FOLDER, cache
from dtrain.record import code_snapshot, origin
from dtrain.record.folder import RunDir

WHOLE = "whole"
"""File that is written into an environment when all of it is there."""
VERSION = re.compile(r"(?P<number>\S+)(?: \((?P<source>.*)\))?")
"""A version as `origin.packages` writes it, with where the package was installed from."""
NOT_FOUND = re.compile(r"No matching distribution found for (?P<name>[^\s=]+)==(?P<number>\S+)")


def python_of(run: RunDir) -> str:
    """Return the Python of an environment with the versions that a run recorded, which is made if it is not there; raises `UsageError`
    if it cannot be."""
    facts = code_snapshot.origin_of(run.code)
    if not facts.packages:
        raise UsageError(f"{run.id} recorded no packages", f"Train it in this environment: dtrain reproduce {run.id}")
    wanted, version = _requirements(run, facts.packages), distribution(installation.NAME).version
    key = hashlib.sha256("\n".join([facts.python, version, *wanted]).encode()).hexdigest()[:12]
    folder = cache() / "environments" / key
    folder.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / WHOLE).exists():
            base = _base_python(run, facts.python)
            print(
                f"dtrain: installing the {len(wanted)} packages of {run.id} into {folder} …",
                file=sys.stderr,
                flush=True,
            )
            _make(run, folder, base, wanted, facts.packages)
            (folder / WHOLE).touch()
    return str(folder / "bin" / "python")


def variables_of(python: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Pure. Return the variables of a process in the environment of this Python, as if it had been activated."""
    programs = Path(python).parent
    path = os.pathsep.join([str(programs), environment.get("PATH", os.defpath)])
    return {**environment, "VIRTUAL_ENV": str(programs.parent), "PATH": path}


def _requirements(run: RunDir, packages: Mapping[str, str]) -> list[str]:
    """List what pip is to install. What was imported from a folder comes with the code of the run."""
    found, folders = list[str](), list[str]()
    snapshot = code_snapshot.opened(run.code, run.job().folder)
    kept = list(snapshot.files) if snapshot else []
    for name, text in packages.items():
        match = VERSION.fullmatch(text)
        number, source = match.group("number", "source") if match else (text, None)
        if name == installation.NAME:
            continue
        if source and "://" in source:
            found.append(f"{name} @ {source}")
        elif not source:
            found.append(f"{name}=={number}")
        elif not any(path.startswith(os.path.realpath(source) + "/") for path in kept):
            folders.append(f"{name} ({source})")
    if folders:
        _impossible(run, f"installed from a folder with pip install -e and no part of its code: {', '.join(folders)}")
    return found


def _base_python(run: RunDir, version: str) -> str:
    """Find the Python that a run was trained by, to its second number."""
    minor = ".".join(version.split(".")[:2])
    if platform.python_version().startswith(f"{minor}."):
        return sys.executable
    return shutil.which(f"python{minor}") or _impossible(run, f"Python {version}, and there is no python{minor} here")


def _make(run: RunDir, folder: Path, base: str, wanted: Sequence[str], packages: Mapping[str, str]) -> None:
    """Make the environment: what was recorded, this dtrain, and nothing else."""
    python, listed = folder / "bin" / "python", folder / "requirements.txt"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run(run, base, "-m", "venv", "--clear", folder)
    listed.write_text("\n".join([*wanted, ""]))
    wheel = installation.wheel_of(distribution(installation.NAME), folder)
    _run(run, *pip, "install", "--no-deps", "-r", listed, wheel)
    there = origin.packages([str(path) for path in folder.glob("lib/python*/site-packages")])
    if others := there.keys() - packages.keys() - {installation.NAME}:
        _run(run, *pip, "uninstall", "--yes", *sorted(others))


def _run(run: RunDir, *command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    if not done.returncode:
        return
    said = done.stdout + done.stderr
    if found := NOT_FOUND.search(said):
        name, number = found["name"], found["number"]
        own = ": only its maker's index has a version with '+'" if "+" in number else ""
        _impossible(
            run,
            f"{name} {number}, which pip finds nowhere{own} (PIP_EXTRA_INDEX_URL names an index, PIP_FIND_LINKS a folder of wheels)",
        )
    last = ([line for line in said.splitlines() if "rror" in line] or said.splitlines() or [""])[-1]
    _impossible(run, f"packages that cannot be installed: {last.strip()}")


def _impossible(run: RunDir, what: str) -> NoReturn:
    raise UsageError(
        f"the environment of {run.id} cannot be made again: it had {what}",
        f"Train it in this environment: dtrain reproduce {run.id}",
    )
