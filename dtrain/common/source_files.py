"""Whose code a source file holds: dtrain's, a library's or the user's. The place of installation decides, never a folder's name alone."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

INSTALLED_IN = ("site-packages", "dist-packages")
"""Names of the folders on `sys.path` that libraries are installed in."""


def is_ours(filename: str) -> bool:
    """Whether the file lies in an imported package of dtrain, plugins included, wherever that is installed."""
    packages = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "dtrain"]
    folders = {folder for module in packages for folder in getattr(module, "__path__", ())}
    return filename.startswith(tuple(f"{folder}{os.sep}" for folder in folders))


def is_library(filename: str) -> bool:
    """Whether the file belongs to Python or to an installed library, or is none: generated code has names like `<string>`."""
    return filename.startswith(("<", *_library_folders()))


def is_users(filename: str) -> bool:
    """Whether the file is neither dtrain's nor a library's."""
    return not is_library(filename) and not is_ours(filename)


@cache
def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= {folder for folder in sys.path if Path(folder).name in INSTALLED_IN}
    return tuple(f"{folder}{os.sep}" for folder in found)
