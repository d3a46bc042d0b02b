"""Pictures in PNG files, drawn by matplotlib if it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtrain.common import installation
from dtrain.common.errors import UsageError


def require() -> None:
    """Raise `UsageError` if what draws them is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UsageError(
            "pictures are drawn by matplotlib, which is not installed",
            f"Install it: {installation.command('plot')}. A page needs nothing: --html FILE.",
        ) from None


def figure(width: float, height: float) -> Any:
    """An empty figure, in inches; raises `UsageError` if matplotlib is not installed."""
    require()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: Path) -> None:
    """Write a figure; raises `UsageError` if the file cannot be written."""
    try:
        drawn.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", "Name another file.") from None
