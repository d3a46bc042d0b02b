"""Workers that exit with code 0 while others still run, and what that explains about how these fail."""

from __future__ import annotations

import dataclasses

from dtrain.job.failure_kinds import Failure, FailureKind

NO_INITIATOR = "connections between the ranks ended while every rank still ran: look at the network between their nodes"


class EarlyExits:
    """The ranks of one attempt that exited with code 0 so far."""

    def __init__(self, *, script: bool, ranks: int) -> None:
        self._ranks = ranks
        self._script = script
        self._finished: set[int] = set()
        self._exited: dict[int, float] = {}
        self._left: dict[int, int] = {}

    def finished(self, rank: int) -> None:
        """A worker of a task or a function came to its end, or left at the agreed step."""
        self._finished.add(rank)

    def left_loop(self, rank: int, step: int) -> None:
        """A worker's function left its loop after this number of steps, which were not all."""
        self._left[rank] = step

    def exited(self, rank: int, time: float) -> str:
        """A worker exited with code 0: why that is a failure of its own, or ''. A script's exit code is its own business."""
        self._exited[rank] = time
        if self._script or rank in self._finished:
            return ""
        return "exited with code 0 before the run's steps were done (os._exit, or a library that ends the process)"

    def explain(self, failure: Failure) -> Failure:
        """A failure in the light of who had left before: whoever lost a connection to one of those, or waits for it, is not
        to blame."""
        if 0 < len(self._left) < self._ranks and failure.kind in (FailureKind.HANG, FailureKind.CASCADE):
            first = min(self._left)
            message = (
                f"rank {first} left its loop after {self._left[first]} steps while other ranks went on, and these wait for it: "
                "leave at the same step on every rank, or call context.stop(reason), which agrees on one"
            )
            return dataclasses.replace(failure, kind=FailureKind.BUG, message=message, rank=first, where="")
        if not self._script and not self._exited and self._ranks > 1 and failure.kind is FailureKind.CASCADE:
            message = f"{NO_INITIATOR} ({failure.message})"
            return dataclasses.replace(failure, message=message, where="", traceback="")
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
