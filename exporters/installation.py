"""Whether packages are installed, without importing them."""

from __future__ import annotations

import importlib.util


def missing(extra: str, *modules: str) -> str:
    """Return what to install for modules that are not there, or ''."""
    lacking = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"needs {', '.join(lacking)}: pip install 'dtrain[{extra}]'" if lacking else ""
