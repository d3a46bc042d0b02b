"""Workers that exit with code 0 while others still run, and what that explains about how these fail."""

from __future__ import annotations

import dataclasses

from dtrain.spec.failures import Failure, FailureKind


class EarlyExits:
    """The ranks of one attempt that exited with code 0 so far."""

    def __init__(self, *, script: bool) -> None:
        self._script = script
        self._finished: set[int] = set()
        self._exited: dict[int, float] = {}

    def finished(self, rank: int) -> None:
        """A worker of a task or a function came to its end, or left at the agreed step."""
        self._finished.add(rank)

    def exited(self, rank: int, time: float) -> str:
        """A worker exited with code 0: why that is a failure of its own, or ''. A script's exit code is its own business."""
        self._exited[rank] = time
        if self._script or rank in self._finished:
            return ""
        return "exited with code 0 before the run's steps were done (os._exit, or a library that ends the process)"

    def explain(self, failure: Failure) -> Failure:
        """A failure in the light of who had left before: whoever lost a connection to one of those is not to blame."""
        if not self._script or not self._exited:
            return failure
        first = min(self._exited, key=lambda rank: self._exited[rank])
        if failure.kind is FailureKind.CASCADE:
            message = (
                f"exited with code 0 while others still ran, which then failed: rank {failure.rank}: {failure.message}"
            )
            return dataclasses.replace(failure, kind=FailureKind.TRANSIENT, message=message, rank=first, where="")
        ago = f"rank {first} had exited with code 0 {max(0.0, failure.time - self._exited[first]):.0f} s before"
        return dataclasses.replace(failure, message=f"{failure.message}; {ago}")
