"""Whether packages are installed, without importing them."""

from __future__ import annotations

import importlib.util

from dtrain.common import installation


def missing(extra: str, *modules: str) -> str:
    """Return what to install for modules that are not there, or ''."""
    lacking = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"needs {', '.join(lacking)}: {installation.command(extra)}" if lacking else ""
