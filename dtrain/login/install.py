"""Puts this dtrain on another machine, into a virtual environment of the person there."""

from __future__ import annotations

import shlex
import sys
import tempfile
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from dtrain.common.errors import UsageError
from dtrain.login.connection import Host

NEEDS = (3, 10)
"""Oldest Python that dtrain runs on."""


def wheel_of(installed: Distribution, folder: Path) -> Path:
    """Pack an installed distribution as a wheel again (PEP 427): its files, with a new RECORD."""
    tag = next(line.split()[1] for line in (installed.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:"))
    path = folder / f"{installed.name}-{installed.version}-{tag}.whl"
    record, names = "", list[str]()
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for file in installed.files or ():
            name = file.as_posix()
            own = not name.startswith("..") and file.suffix != ".pyc"
            if name.endswith(".dist-info/RECORD"):
                record = name
            elif own and not name.endswith(("/INSTALLER", "/REQUESTED", "/direct_url.json")):
                archive.write(str(file.locate()), name)
                names.append(name)
        if not record or not any(name.startswith("dtrain/") for name in names):
            raise UsageError(
                "this dtrain is installed as a link to a checkout, and cannot be packed",
                "Install it whole: pip install FOLDER, without -e",
            )
        archive.writestr(record, "".join(f"{name},,\n" for name in [*names, record]))
    return path


def install(host: Host) -> None:
    """Install this version, or this one instead of another, in a virtual environment that also sees the packages of that machine."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = wheel_of(distribution("dtrain"), Path(folder))
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
