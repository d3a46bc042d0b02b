"""Named points that every run passes, where a feature that disturbs runs on purpose can act; in every other run nothing happens."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

Batch = TypeVar("Batch")


class Hooks:
    """Does nothing at each point."""

    def reach(self, phase: str, step: int, attempt: int | None) -> None:
        """This process enters a phase of a step; a supervisor names the attempt, too."""

    def wrap_fetch(self, fetch: Callable[[int], Batch]) -> Callable[[int], Batch]:
        """Replace the function that returns the batch of a step."""
        return fetch

    def before_script(self) -> None:
        """This process is about to run a program whose steps are unknown."""


_installed = Hooks()


def install(source: str, **facts: Any) -> None:
    """Install what `source`, `module=argument`, names: `module.hooks(argument, **facts)`. An empty `source` installs nothing."""
    global _installed
    module, _, argument = source.partition("=")
    _installed = importlib.import_module(module).hooks(argument, **facts) if module else Hooks()


def reach(phase: str, step: int = 0, attempt: int | None = None) -> None:
    """Call `Hooks.reach` of what is installed."""
    _installed.reach(phase, step, attempt)


def wrap_fetch(fetch: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """Call `Hooks.wrap_fetch` of what is installed."""
    return _installed.wrap_fetch(fetch)


def before_script() -> None:
    """Call `Hooks.before_script` of what is installed."""
    _installed.before_script()
