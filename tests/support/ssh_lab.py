"""A real sshd on loopback, in a folder of the test, in front of a home of its own; stopped by the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import debian
from processes import free_ports, wait_until

from dtrain.common.processes import alive

PACKAGES = ("openssh-server", "openssh-client", "rsync")
CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
SetEnv HOME={home} {environment}
"""
CLIENT = """\
Host login
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking accept-new
"""
NAME = "login"
"""The machine, as ssh knows it by the lab's settings."""


def missing() -> str | None:
    """Return what is not installed; None if nothing."""
    found = [program for program in ("sshd", "ssh", "rsync", "ssh-keygen") if not shutil.which(program, path=_path())]
    return f"not installed: {', '.join(found)} (Debian: apt-get install {' '.join(PACKAGES)})" if found else None


def install_ssh() -> str | None:
    """Install sshd, ssh and rsync where they are missing; returns why they still are."""
    return debian.install(missing, PACKAGES)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"


class SshLab:
    """A running sshd; `home` is that of whoever logs in."""

    def __init__(self, folder: Path, **environment: str) -> None:
        (port,) = free_ports(1)
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        for name in ("host_key", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        settings = " ".join(f"{name}={value}" for name, value in environment.items())
        (folder / "sshd_config").write_text(
            CONFIG.format(port=port, folder=folder, home=self.home, environment=settings)
        )
        (folder / "ssh_config").write_text(CLIENT.format(port=port, folder=folder))
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it, wherever its other files are
        sshd = shutil.which("sshd", path=_path()) or "sshd"
        with (folder / "log").open("wb") as log:
            self._sshd = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        wait_until(lambda: (folder / "sshd.pid").exists() or self._sshd.poll() is not None, 10, "sshd does not start")
        assert self._sshd.poll() is None, (folder / "log").read_text()

    @property
    def client(self) -> dict[str, Any]:
        """The environment of a person who reaches it, with a home and caches of their own."""
        own = self.folder / "laptop"
        own.mkdir(exist_ok=True)
        return {
            "DTRAIN_SSH": f"ssh -F {self.folder}/ssh_config", "HOME": str(own), "XDG_CACHE_HOME": str(own / "cache"),
            "XDG_CONFIG_HOME": str(own / "config"),
        }  # fmt: skip

    def put_dtrain_there(self) -> None:
        """Give the home there the dtrain of the tests, as --bootstrap would."""
        script = self.home / ".dtrain" / "venv" / "bin" / "dtrain"
        script.parent.mkdir(parents=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m dtrain "$@"\n')
        script.chmod(0o755)

    def cut(self) -> None:
        """Cut every connection; sshd goes on and takes new ones."""
        for line in Path(f"/proc/{self._sshd.pid}/task/{self._sshd.pid}/children").read_text().split():
            os.kill(int(line), 9)

    def stop(self) -> None:
        """End it, with its connections."""
        self.cut()
        self._sshd.terminate()
        self._sshd.wait()
        assert not alive(self._sshd.pid)
