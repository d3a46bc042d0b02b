"""Whether what a tracker needs is installed, and how to install it."""

from __future__ import annotations

import importlib.util

from dtrain.common import installation


def missing(package: str, extra: str = "") -> str:
    """Why a tracker that imports this package cannot work here and what to do, or ''; imports nothing."""
    return "" if importlib.util.find_spec(package) else f"needs {package}: {installation.command(extra or package)}"
