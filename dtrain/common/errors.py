"""Every error a user can cause: one tree, each with an exit code and what to do next."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every dtrain command."""

    DONE = 0
    USER_CODE = 1
    USAGE = 2
    GAVE_UP = 3
    RESUMABLE = 4
    INTERNAL = 70
    INTERRUPTED = 130

    @classmethod
    def _missing_(cls, value: object) -> Exit | None:
        """Read a code that no dtrain ends with, which only a damaged record has, as giving up."""
        return cls.GAVE_UP if isinstance(value, int) else None


class DtrainError(Exception):
    """An error with a message for the person at the terminal, a hint for the next step and an exit code."""

    exit_code = Exit.GAVE_UP

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(DtrainError):
    """A command or a recipe asks for something that cannot be done; nothing was started."""

    exit_code = Exit.USAGE


class RunNotFound(UsageError):
    """No run, or more than one, answers to the name that was given."""


class NewerFormat(UsageError):
    """A newer version of dtrain wrote what is to be read."""


def require_format(what: str, found: object, known: int) -> None:
    """Raise `NewerFormat` for what has a greater format number than this version reads."""
    if isinstance(found, int) and found > known:
        raise NewerFormat(
            f"{what} has the format {found}, and this dtrain reads up to {known}",
            "A newer version of dtrain wrote it: update dtrain.",
        )


class FrameworkMissing(UsageError):
    """The strategy's framework is not installed where the workers run."""


class UserError(DtrainError):
    """The user's task, function or data does not keep to its contract; the message names their file and what is expected."""

    exit_code = Exit.USER_CODE


class AnotherRankFailed(DtrainError):
    """This rank ends because another one says what went wrong."""


class ClusterError(DtrainError):
    """The cluster did not give, or took away, what the run needs."""


class StorageError(DtrainError):
    """Remote storage did not do what was asked of it."""


class CheckpointError(DtrainError):
    """A checkpoint that was needed cannot be used."""


class InternalError(DtrainError):
    """A fault of dtrain itself, not of the user's code or of the infrastructure."""

    exit_code = Exit.INTERNAL


def nearest(name: str, valid: list[str]) -> str:
    """` Did you mean 'x'?` for the closest valid name, or the list of them if none is close."""
    import difflib

    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(sorted(valid))}."


def add_note(error: BaseException, text: str) -> None:
    """Say more about an error of the user's code (PEP 678, also on Python 3.10)."""
    error.__dict__.setdefault("__notes__", []).append(text)


def notes_of(error: BaseException) -> list[str]:
    """Return the notes of an error."""
    return [str(note) for note in getattr(error, "__notes__", ())]
