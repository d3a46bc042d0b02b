"""How to install what an optional part of dtrain needs, by a command that works where this dtrain was installed from; and this dtrain
itself elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zipfile import ZIP_DEFLATED, ZipFile

from dtrain.common.errors import UsageError

NAME = "dtrain"


def command(extra: str) -> str:
    """Return the command that installs an extra: of the checkout or wheel that this dtrain came from or, if that is gone or was none,
    the packages that the extra stands for."""
    try:
        facts = distribution(NAME)
    except PackageNotFoundError:
        return f"pip install {extra}"
    try:
        source = json.loads(facts.read_text("direct_url.json") or "{}")
    except ValueError:
        source = {}
    packages = requirements(extra, facts.requires or [])
    url = urlsplit(str(source.get("url", "")))
    path = Path(unquote(url.path))
    if packages and url.scheme == "file" and path.exists():
        editable = "-e " if source.get("dir_info", {}).get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{path}[{extra}]')}"
    return f"pip install {' '.join(map(shlex.quote, packages)) or extra}"


def requirements(extra: str, declared: list[str]) -> list[str]:
    """List the packages that an extra stands for, of what a distribution declares (`torch>=2.6; extra == "torch"`)."""
    parted = [text.partition(";") for text in declared]
    return [
        package.strip() for package, _, when in parted if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", when)
    ]


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
