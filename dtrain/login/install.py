"""Puts this dtrain on another machine, into a virtual environment of the person there."""

from __future__ import annotations

import shlex
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from dtrain.common import installation
from dtrain.login.connection import Host

NEEDS = (3, 10)
"""Oldest Python that dtrain runs on."""


def install(host: Host) -> None:
    """Install this version, or this one instead of another, in a virtual environment that also sees the packages of that machine."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = installation.wheel_of(distribution(installation.NAME), Path(folder))
        target = f"{host.base}/wheels"
        host.send(Path(folder), [wheel.name], target)
        print(f"putting dtrain on {host.name} …", file=sys.stderr, flush=True)
        venv, at_least = f"{host.base}/venv", ", ".join(map(str, NEEDS))
        host.output(
            f"python3 -c 'import sys; sys.exit(sys.version_info < ({at_least}))' || "
            f"{{ echo 'dtrain: python3 there is older than {NEEDS[0]}.{NEEDS[1]}: load a module with a newer one' >&2; exit 1; }}; "
            f"[ -x {venv}/bin/python ] || python3 -m venv --system-site-packages {venv} && "
            f"{venv}/bin/python -m pip install -q --disable-pip-version-check {shlex.quote(f'{target}/{wheel.name}')} && "
            f"{venv}/bin/python -m pip install -q --disable-pip-version-check --no-deps --force-reinstall {shlex.quote(f'{target}/{wheel.name}')}"
        )
