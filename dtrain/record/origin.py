"""Where the code of a run comes from: commit and branch, and the packages of the Python that made the run. Kept in its code snapshot."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain.common.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Origin:
    """Facts of the moment in which a run was made; '' and {} where they are not known."""

    commit: str = ""
    branch: str = ""
    python: str = ""
    packages: Mapping[str, str] | None = None
    """Name → version, with the folder behind it where a package is installed from one (`pip install -e`)."""

    @classmethod
    def of_index(cls, index: Mapping[str, Any]) -> Origin:
        """Read what `now` wrote; indexes of earlier versions know only the commit."""
        git = index.get("git", {})
        return cls(git.get("commit", ""), git.get("branch", ""), index.get("python", ""), index.get("packages", {}))

    def __str__(self) -> str:
        """`commit 1a2b3c4d5e (branch main)`; '' without a commit."""
        branch = f" (branch {self.branch})" if self.branch else ""
        return f"commit {self.commit[:10]}{branch}" if self.commit else ""


def now(folder: Path) -> dict[str, Any]:
    """Return for an index what is true now of code in this folder."""
    return {"git": commit_of(folder), "python": platform.python_version(), "packages": packages(sys.path)}


def commit_of(folder: Path) -> dict[str, str]:
    """Branch and commit of the repository that a folder lies in, read without running git."""
    for above in (folder, *folder.parents):
        git = above / ".git"
        if git.is_dir():
            try:
                head = (git / "HEAD").read_text().strip()
                if not head.startswith("ref: "):
                    return {"commit": head}
                ref = head.removeprefix("ref: ")
                packed = (git / "packed-refs").read_text().splitlines() if not (git / ref).is_file() else []
                commits = [line.split()[0] for line in packed if line.endswith(f" {ref}")]
                commit = (git / ref).read_text().strip() if not packed else "".join(commits)
                return {"branch": ref.removeprefix("refs/heads/"), "commit": commit}
            except OSError:
                return {}
    return {}


def packages(path: list[str]) -> dict[str, str]:
    """Name → version of what is installed on a module path, by the names of the folders that pip writes (PEP 376, PEP 610): reading every
    package's own metadata takes a hundred times as long."""
    found = dict[str, str]()
    for place in path:
        try:
            entries = [entry.name for entry in os.scandir(place or ".") if entry.name.endswith(".dist-info")]
        except OSError:  # an archive, or a folder that is not there
            continue
        for entry in entries:
            name, _, version = entry.removesuffix(".dist-info").partition("-")
            source = _folder_behind(f"{place}/{entry}/direct_url.json")
            found.setdefault(name.replace("_", "-").lower(), f"{version} ({source})" if source else version)
    return dict(sorted(found.items()))


def _folder_behind(path: str) -> str:
    """The folder that an editable installation imports from; '' for others."""
    try:
        with open(path) as file:
            facts = json.load(file)
        editable = facts.get("dir_info", {}).get("editable", False)
        return str(facts["url"]).removeprefix("file://") if editable else ""
    except (OSError, ValueError, KeyError, AttributeError):
        return ""
