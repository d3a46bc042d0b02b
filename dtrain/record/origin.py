"""Where the code of a run comes from: its commit and what was changed since, the command, the host and the packages of the Python that
made the run. Kept in its code snapshot, and the changes in a file beside it."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtrain.common import environment
from dtrain.common.files import PRIVATE_FILE
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.secrets import HIDDEN, PRIVATE_KEYS

MOST_CHANGES = 50_000_000
"""Bytes of changes that are kept."""
CHANGES = """
git --no-optional-locks -C "$1" diff HEAD --no-color --no-ext-diff
git --no-optional-locks -C "$1" ls-files --others --exclude-standard -- . ${2:+":(exclude)$2"} | sed 's/^/# not in git: /'
"""
CONTAINER = ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "SHIFTER_IMAGEREQUEST", environment.IMAGE)
"""Variables in which container runtimes name their image."""
USER = re.compile(r"://[^/@]*@")
PRIVATE = tuple(f"{key}." for key in PRIVATE_KEYS)


@dataclass(frozen=True)
class Origin:
    """Facts of the moment in which a run was made; '' and {} where they are not known."""

    commit: str = ""
    branch: str = ""
    python: str = ""
    packages: Mapping[str, str] | None = None
    """Name → version, and in brackets the folder (`pip install -e`) or the address that it was installed from, if not from a registry."""
    remote: str = ""
    """The address of the repository, without user and password."""
    command: str = ""
    """What was typed; values of the environment are left out."""
    host: str = ""
    loaded_modules: str = ""
    """Environment modules that were loaded, with colons between them."""
    container: str = ""
    """The image that dtrain ran in."""

    @classmethod
    def of_index(cls, index: Mapping[str, Any]) -> Origin:
        """Read what `now` wrote; indexes of earlier versions know less."""
        known = {"packages": {}} | {name: index[name] for name in cls.__dataclass_fields__ if name in index}
        return cls(**known | index.get("git", {}))

    def __str__(self) -> str:
        """`commit 1a2b3c4d5e (branch main)`; '' without a commit."""
        branch = f" (branch {self.branch})" if self.branch else ""
        return f"commit {self.commit[:10]}{branch}" if self.commit else ""


def now(folder: Path) -> dict[str, Any]:
    """Return for an index what is true now of code in this folder."""
    return {
        "git": commit_of(folder), "python": platform.python_version(), "packages": packages(sys.path), "command": typed(sys.argv),
        "host": socket.gethostname(), "loaded_modules": os.environ.get("LOADEDMODULES", ""),
        "container": next(filter(None, map(os.environ.get, CONTAINER)), ""),
    }  # fmt: skip


def typed(argv: Sequence[str]) -> str:
    """Return a command line as it can be typed again, without the values of environment variables and of other private keys."""
    shown, before = [Path(argv[0]).name], ""
    for word in argv[1:]:
        option, value = word.partition("=")[::2] if word.startswith("--") else (before, word)
        key, sign, _ = value.partition("=")
        private = option == "--env" or (option == "--set" and f"{key}.".startswith(PRIVATE))
        shown.append(f"{word.removesuffix(value)}{key}={HIDDEN}" if sign and private else word)
        before = word
    return USER.sub("://", shlex.join(shown))


def keep_changes(folder: Path, path: Path, runs: Path) -> None:
    """Have git write the changes in a folder since its commit, and the names of files outside `runs` that it does not know, to `path`;
    nobody waits for it, so that a run starts no later. The file is empty if nothing was changed, or if there is no git."""
    inside = str(runs.relative_to(folder)) if runs.is_relative_to(folder) else ""
    script = f"(({CHANGES}) | head -c {MOST_CHANGES}) &"
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            subprocess.run(
                ["sh", "-c", script, "sh", str(folder), inside], check=False, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(file)


def commit_of(folder: Path) -> dict[str, str]:
    """Branch, commit and address of the repository that a folder lies in, read without running git."""
    for above in (folder, *folder.parents):
        git = above / ".git"
        try:
            if git.is_file():  # another working tree of a repository, or a submodule
                git = above / git.read_text().removeprefix("gitdir:").strip()
            if not git.is_dir():
                continue
            shared = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
            head = (git / "HEAD").read_text().strip()
            found = {"remote": remote} if (remote := _remote(shared / "config")) else {}
            if not head.startswith("ref: "):
                return found | {"commit": head}
            ref = head.removeprefix("ref: ")
            packed = (shared / "packed-refs").read_text().splitlines() if not (shared / ref).is_file() else []
            commits = [line.split()[0] for line in packed if line.endswith(f" {ref}")]
            commit = (shared / ref).read_text().strip() if not packed else "".join(commits)
            return found | {"branch": ref.removeprefix("refs/heads/"), "commit": commit}
        except OSError:
            return {}
    return {}


def _remote(config: Path) -> str:
    """Return the address of `origin`, or of the first other remote, in git's settings."""
    if not config.is_file():
        return ""
    found = dict(re.findall(r'^\[remote "([^"]+)"\][^\[]*?^\s*url\s*=\s*(\S+)', config.read_text(), re.MULTILINE))
    return USER.sub("://", found.get("origin") or next(iter(found.values()), ""))


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
            source = _source_of(f"{place}/{entry}/direct_url.json")
            found.setdefault(name.replace("_", "-").lower(), f"{version} ({source})" if source else version)
    return dict(sorted(found.items()))


def _source_of(path: str) -> str:
    """Return the folder that an editable installation imports from, or the address that a package was installed from; '' for others."""
    try:
        with open(path) as file:
            facts = json.load(file)
        url = USER.sub("://", str(facts["url"]))
        if facts.get("dir_info", {}).get("editable", False):
            return url.removeprefix("file://")
        if "vcs_info" in facts:
            return f"{facts['vcs_info']['vcs']}+{url}@{facts['vcs_info']['commit_id']}"
        return "" if url.startswith("file:") else url
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return ""
