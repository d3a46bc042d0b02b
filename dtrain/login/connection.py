"""A machine that is reached over SSH, by the system's own `ssh` and `rsync`: with the settings, keys and jump hosts of the person."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from dtrain.common import environment
from dtrain.common.errors import ClusterError, UsageError
from dtrain.common.files import PRIVATE_FOLDER, cache
from dtrain.common.lazy_dataclass import dataclass

LOST = 255
"""Exit code of ssh if there is no connection, or none any more (ssh(1))."""
PERSIST_SECONDS = 600
"""So long a connection stays for the next command, which then asks for no password and no second factor."""
ALIVE_SECONDS = 15
LONGEST_SOCKET = 85
"""Characters of a socket's path, to which ssh adds 18; the system takes 103 (unix(7))."""
BASE = ".dtrain"
"""Folder of dtrain in the home of the person there."""


@dataclass()
class Host:
    """A machine by the name that ssh knows it by."""

    name: str

    @cached_property
    def ssh(self) -> list[str]:
        """The words before the name of the machine; `DTRAIN_SSH` may give other ones than `ssh`."""
        words = shlex.split(os.environ.get(environment.SSH) or "ssh")
        options = {"ServerAliveInterval": f"{ALIVE_SECONDS}"}
        shared = cache() / "ssh" / hashlib.sha256(shlex.join([*words, self.name]).encode()).hexdigest()[:8]
        if len(str(shared)) <= LONGEST_SOCKET:  # otherwise each command makes a connection of its own
            shared.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            options |= {"ControlMaster": "auto", "ControlPath": f"{shared}", "ControlPersist": f"{PERSIST_SECONDS}"}
        return [*words, *(f"-o{key}={value}" for key, value in options.items())]

    @cached_property
    def _there(self) -> list[str]:
        """The home of the person there, and the version of dtrain, if there is one: in one go, since a link may be slow. Makes its folder."""
        own = f'"$HOME"/{BASE}/venv/bin/dtrain'
        found = f"if [ -x {own} ]; then {own} --version; else dtrain --version; fi 2>/dev/null || true"
        return self.output(
            f'mkdir -p -m 700 "$HOME"/{BASE} && mkdir -p "$HOME"/{BASE}/projects && echo "$HOME" && {found}'
        ).splitlines()

    @property
    def home(self) -> str:
        """The home of the person there."""
        return self._there[0]

    @property
    def version(self) -> str:
        """The version of dtrain there; '' without one."""
        return self._there[1].split()[-1] if len(self._there) > 1 else ""

    @property
    def base(self) -> str:
        """The folder of dtrain there."""
        return f"{self.home}/{BASE}"

    def output(self, script: str) -> str:
        """Run a script of shell there and return what it prints; raises `ClusterError` if it fails."""
        done = self._run([*self.ssh, self.name, _by_shell(script)], stdout=subprocess.PIPE)
        if done.returncode:
            raise self.failed(done.returncode)
        return done.stdout

    def interactive(self, script: str, *, capture: bool = False) -> tuple[int, str]:
        """Run a script of shell there in this terminal, if there is one; returns its exit code and, with `capture`, its output."""
        terminal = not capture and sys.stdin.isatty() and sys.stdout.isatty()
        words = [*self.ssh, *(["-t", "-oLogLevel=ERROR"] if terminal else []), self.name, _by_shell(script)]
        done = self._run(words, stdout=subprocess.PIPE if capture else None)
        return done.returncode, done.stdout or ""

    def send(self, folder: Path, names: Sequence[str], target: str) -> None:
        """Bring these files of a folder into a folder there, as far as they differ; raises `ClusterError`."""
        self._rsync(["--files-from=-", "--from0", f"{folder}/", f"{self.name}:{target}/"], "\0".join(names))

    def fetch(self, source: str, target: Path, *options: str) -> None:
        """Bring a file or, with a slash at its end, what is in a folder there; raises `ClusterError`."""
        self._rsync([*options, f"{self.name}:{source}", str(target)])

    def failed(self, code: int) -> ClusterError:
        """Return the error of a command that could not be run there; what ssh said is on the terminal."""
        if code == LOST:
            return ClusterError(f"ssh cannot reach {self.name}", f"Try it: ssh {self.name} true")
        return ClusterError(f"a command on {self.name} ended with exit code {code}")

    def _rsync(self, words: list[str], files: str = "") -> None:
        shell = ["-e", shlex.join(self.ssh)]
        done = self._run(["rsync", "-a", "--protect-args", "--partial", *shell, *words], input=files)
        if done.returncode:
            raise self.failed(done.returncode)

    def _run(self, words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(words, check=False, text=True, **options)  # type: ignore[call-overload, no-any-return]
        except FileNotFoundError:
            raise UsageError(
                f"{words[0]} is not installed on this machine, and --host needs it",
                f"Install it: {words[0]} (OpenSSH and rsync).",
            ) from None


def _by_shell(script: str) -> str:
    """Have a login shell run it, which knows modules and paths as a person does who logs in."""
    return f"exec bash -lc {shlex.quote(script)}"
