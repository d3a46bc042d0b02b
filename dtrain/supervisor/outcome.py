"""The outcome of an attempt, and the result of a run."""

from __future__ import annotations

from dtrain.common.errors import Exit
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.failure_kinds import Failure


@dataclass(frozen=True)
class Succeeded:
    """Every worker ended well."""

    unsaved: str = ""
    """Why the state at the end is not on disk."""
    stopped: str = ""
    """Why the user's function ended the run before its last step."""


@dataclass(frozen=True)
class Drained:
    """The workers left because they were asked to."""

    step: int | None
    """The agreed step, saved; None if there was no agreement in time, or the job is a script."""


@dataclass(frozen=True)
class RolledBack:
    """The workers left because of a bad step, to go on from the last checkpoint without it."""

    step: int


@dataclass(frozen=True)
class Failed:
    """Something went wrong, and this is the cause."""

    failure: Failure
    also: tuple[Failure, ...] = ()
    """Failures that other ranks reported."""


Outcome = Succeeded | Drained | RolledBack | Failed


@dataclass(frozen=True)
class RunResult:
    """Why a run ends here."""

    exit_code: Exit
    reason: str
    requeue: bool = False
    """The cluster took nodes away: it is to start the run again with others."""
    exclude: tuple[str, ...] = ()
    """Nodes to keep the run off."""
