"""Which of the ways to have Python find a module helps, if it did not: said before a start, and of an error in a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from dtrain.job import entrypoint
from dtrain.job.job import Job

PROJECT = ("pyproject.toml", "setup.py", "setup.cfg")
ENDS = (".git", *PROJECT)
"""Files that only the topmost folder of a project has."""


def of_module(name: str, job: Job) -> str:
    """Say what makes a missing module found, if it lies somewhere in the same project; '' otherwise."""
    first = name.partition(".")[0]
    for folder in _around(Path(job.folder)):
        if (folder / f"{first}.py").is_file() or (folder / first).is_dir():
            seen = os.path.relpath(folder, job.folder)
            project = next(
                (one for one in (folder, folder.parent) if any((one / name).is_file() for name in PROJECT)), None
            )
            install = f", or install the project: pip install -e {os.path.relpath(project)}" if project else ""
            return f"; '{first}' lies in {folder}: write pythonpath: [{seen}] into the recipe{install}"
    return ""


def _around(folder: Path) -> Iterator[Path]:
    """Yield the folders of a project that modules may be imported from, from this one upwards."""
    for place in (folder, *folder.parents):
        yield place
        yield place / "src"
        if any((place / name).exists() for name in ENDS):
            return


def explained(error: BaseException, job: Job) -> str:
    """Say what makes an import work that failed in the user's code; '' if it is another error, or nothing is known."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        found = of_module(error.name, job)
        return f"there is no module '{error.name}'{found}" if found else ""
    if not isinstance(error, ImportError) or "attempted relative import" not in str(error):
        return ""
    file = entrypoint.script_file(job) if job.kind == "script" else entrypoint.source(job.target, job.code_folders)
    if file is None:
        return ""
    module = f"{file.parent.name}.{file.stem}"
    outside = os.path.relpath(file.parent.parent, job.folder)
    path = "" if outside == "." else f" and pythonpath: [{outside}]"
    named = f"{{module: {module}}}" if job.kind == "script" else f"{module}:{entrypoint.split(job.target)[1]}"
    return f"only a module of a package can import relatively: write {job.kind}: {named}{path} into the recipe"
