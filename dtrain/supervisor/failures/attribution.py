"""Determines which of an attempt's failures is the cause, from workers' reports, exit codes and lost nodes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from dtrain.api.protocol import WorkerExited
from dtrain.api.reports import WorkerFailed
from dtrain.job.failure_kinds import Failure, FailureKind, exit_kind
from dtrain.supervisor.failures.early_exits import EarlyExits
from dtrain.supervisor.failures.policy import cause, conclusive

KINDS = {
    "bug": FailureKind.BUG, "transient": FailureKind.TRANSIENT, "out of memory": FailureKind.OUT_OF_MEMORY, "crash": FailureKind.CRASH,
    "device": FailureKind.DEVICE,
}  # fmt: skip
"""`recovery.classes` says → the class of a failure."""
BUG_SETTLE_SECONDS = 0.5
"""An error of the user's code explains itself; others that have it too may say so."""
SETTLE_SECONDS = 1.5


class FailureAttribution:
    """Collects the candidates for the cause of an attempt's failure, in the order they were noticed."""

    def __init__(
        self,
        owner: Mapping[int, str],
        classify: Callable[[Sequence[str], str], FailureKind],
        *,
        script: bool,
        retry_exit_codes: Sequence[int] = (),
        classes: Mapping[str, str] | None = None,
    ) -> None:
        self._classify = classify
        """Classifier of exceptions, by the names of their types and their text."""
        self._classes = {name: KINDS[one] for name, one in (classes or {}).items()}
        """Classes that the recipe gives, by the names of exceptions."""
        self._owner = owner
        """Rank → node."""
        self._retry_exit_codes = retry_exit_codes
        self._early = EarlyExits(script=script, ranks=len(owner))
        self._reports: dict[int, Failure] = {}
        self._candidates: list[Failure] = []

    def report(self, rank: int, report: WorkerFailed) -> None:
        """A worker reported its exception; it counts when the worker has ended."""
        name = report.message.partition(":")[0].partition("(")[0]
        kind = FailureKind(report.failure) if report.failure else self._classify([name], report.message)
        kind = self._classes.get(name, kind)
        self._reports[rank] = Failure(
            kind, report.message, rank=rank, node=self._owner[rank],
            traceback=report.traceback, where=report.where, exit_code=report.exit_code,
        )  # fmt: skip

    def steps_done(self, rank: int) -> None:
        """A worker of a task or a function came to its end."""
        self._early.finished(rank)

    def left_loop(self, rank: int, step: int) -> None:
        """A worker's function left its loop with steps undone."""
        self._early.left_loop(rank, step)

    def exited_with_zero(self, event: WorkerExited, saved_step: int) -> Failure | None:
        """A worker ended well, or too early."""
        if not (why := self._early.exited(event.rank, time.time())):
            return None
        failure = Failure(FailureKind.BUG, why, rank=event.rank, node=self._owner[event.rank], code=0, step=event.step)
        return self.add(failure, saved_step)

    def has_report(self, rank: int) -> bool:
        """Whether the worker reported an exception before it ended."""
        return rank in self._reports

    def exited(self, event: WorkerExited, saved_step: int) -> Failure:
        """A worker ended badly: its own report explains it, or else its exit code."""
        failure = self._reports.pop(event.rank, None)
        if failure is None:
            kind, text = exit_kind(event.code, out_of_memory=event.out_of_memory)
            failure = Failure(kind, text, rank=event.rank, node=self._owner[event.rank])
        if event.code in self._retry_exit_codes:
            failure = dataclasses.replace(failure, kind=FailureKind.CRASH)
        return self.add(dataclasses.replace(failure, code=event.code, step=event.step), saved_step)

    def add(self, failure: Failure, saved_step: int) -> Failure:
        """Add a candidate for the cause."""
        known = dataclasses.replace(failure, saved_step=saved_step, time=time.time())
        self._candidates.append(known)
        return known

    def cause(self) -> Failure | None:
        """The initiator; None if nothing failed."""
        return self._early.explain(cause(self._candidates)) if self._candidates else None

    def also(self, cause: Failure) -> tuple[Failure, ...]:
        """Return the failures that other ranks than the initiator reported."""
        reported = (one for one in self._candidates if one.kind is not FailureKind.HANG)
        return tuple(one for one in reported if one.rank is not None and one.rank != cause.rank)


def settle_seconds(failure: Failure) -> float:
    """How long to wait for other workers' reports before this failure is taken for the cause; 0 if it explains itself."""
    if failure.kind is FailureKind.BUG and failure.traceback:
        return BUG_SETTLE_SECONDS
    return 0.0 if conclusive(failure) else SETTLE_SECONDS
