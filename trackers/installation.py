"""Whether what a tracker needs is installed, and how to install it."""

from __future__ import annotations

import importlib.util
from contextlib import suppress


def missing(module: str, extra: str) -> str:
    """Why a tracker that imports this module cannot work here, or ''; imports nothing but the packages above the module."""
    with suppress(ImportError, ValueError):
        if importlib.util.find_spec(module):
            return ""
    return f"needs {module.partition('.')[0]}: pip install 'dtrain[{extra}]'"
