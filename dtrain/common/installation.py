"""How to install what an optional part of dtrain needs, by a command that works where this dtrain was installed from."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
