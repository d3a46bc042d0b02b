"""Tells the user's own source files from others: those below the recipe's folder, and in the package of a module
that is run."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from dtrain.job import entrypoint
from dtrain.job.job import Job


class UsersCode:
    """The folders that a job's own files lie in."""

    def __init__(self, job: Job) -> None:
        self._folders = _folders(job)

    def __contains__(self, filename: str) -> bool:
        return any(
            # Below the user's folder, too, virtual environments are full of libraries.
            filename.startswith(folder) and "site-packages" not in filename[len(folder) :]
            for folder in self._folders
        )


def _folders(job: Job) -> tuple[str, ...]:
    found = [folder + os.sep for folder in job.code_folders]
    target = entrypoint.code_of(job)
    if Path(target).is_absolute():
        found.append(f"{Path(target).parent}{os.sep}")
    elif not target.endswith(".py"):
        module = sys.modules.get(target.partition(".")[0])
        spec = module and importlib.util.find_spec(module.__name__) if module else None
        if spec and spec.submodule_search_locations:
            found += [folder + os.sep for folder in spec.submodule_search_locations]
    return tuple(found)
