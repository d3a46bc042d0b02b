"""Commits the checkpoints of one attempt: when every rank's shard is written, beside the supervisor's loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from dtrain.api.reports import ShardWritten
from dtrain.checkpoint.store import CheckpointInfo, CheckpointOrigin, CheckpointShard, CheckpointStore
from dtrain.common import hooks
from dtrain.common.errors import CheckpointError
from dtrain.record.event_log import EventLog
from dtrain.record.events import CheckpointFailed, CheckpointSaved, Event, UserWarned
from dtrain.supervisor.beside.background import Lane
from dtrain.supervisor.saving.retention import CheckpointRetention

FULL = ("No space left", "quota exceeded")
"""In the texts of ENOSPC and EDQUOT."""


class CheckpointCommits:
    """The shards that are still missing, the commits under way and what came of them."""

    def __init__(
        self,
        attempt: int,
        store: CheckpointStore,
        lane: Lane,
        log: EventLog,
        *,
        ranks: int,
        retention: CheckpointRetention,
        origin: CheckpointOrigin,
        saved_step: int,
        begun_step: int,
        changed: Callable[[], None],
    ) -> None:
        self._attempt = attempt
        self._store = store
        self._lane = lane
        self._log = log
        self._ranks = ranks
        self._retention = retention
        self._origin = origin
        self._changed = changed
        self._begun_step = begun_step
        """Step that the attempt began from, which is above `saved_step` if it was in memory alone."""
        self._shards: dict[int, dict[int, ShardWritten]] = {}
        self._failed: dict[int, str] = {}
        self.saved_step = saved_step
        """Step of the newest committed checkpoint."""
        self.under_way = 0
        """Commits that have begun and not ended."""

    def unsaved(self, step: int) -> str:
        """Why the state of a step, or of a later one, is not on disk; '' if it is."""
        last = max(self._failed, default=-1)
        if last > self.saved_step:
            return self._failed[last]
        lost = self.saved_step < self._begun_step
        if lost:
            return f"the in-memory checkpoint of step {self._begun_step} was not written"
        return f"the newest checkpoint is that of step {self.saved_step} of {step}" if self.saved_step < step else ""

    def see(self, event: Event) -> None:
        """Take an event that may say which checkpoints stay."""
        self._retention.see(event)

    def add(self, rank: int, report: ShardWritten) -> None:
        """A rank's shard is on disk; the last one begins the commit."""
        step = report.step
        if step in self._failed:  # it was written beside the removal of what others had staged
            self._lane.run(lambda: self._store.abandon(self._attempt, step), _ignore)
            return
        shards = self._shards.setdefault(step, {})
        shards[rank] = report
        if len(shards) == self._ranks:
            ordered = [shards[rank] for rank in sorted(shards)]
            del self._shards[step]
            self.under_way += 1
            self._lane.run(lambda: self._commit(step, ordered), lambda result: self._committed(step, ordered, result))

    def fail(self, step: int, error: str) -> None:
        """A checkpoint cannot be finished: say so once, free its space, and train on."""
        self._shards.pop(step, None)
        self._lane.run(lambda: self._store.abandon(self._attempt, step), _ignore)
        if step not in self._failed:
            self._failed[step] = error
            self._log.add(CheckpointFailed(attempt=self._attempt, step=step, error=error))
            if any(word in error for word in FULL):
                self._lane.run(lambda: self._prune(sys.maxsize), self._pruned)

    def _commit(self, step: int, reports: list[ShardWritten]) -> CheckpointInfo:
        hooks.reach("commit", step, self._attempt)
        shards = [CheckpointShard(report.files, report.weights) for report in reports]
        return self._store.commit(self._attempt, step, shards, self._origin)

    def _committed(self, step: int, reports: list[ShardWritten], result: CheckpointInfo | Exception) -> None:
        self.under_way -= 1
        if isinstance(result, CheckpointError):
            self.fail(step, result.message)
        elif isinstance(result, Exception):
            raise result
        else:
            self.saved_step = max(self.saved_step, step)
            self._log.add(
                CheckpointSaved(
                    attempt=self._attempt, step=step, folder=result.name, bytes=result.bytes, weights=result.weights,
                    seconds=round(max(report.seconds for report in reports), 4),
                    stall_seconds=round(max(report.stall_seconds for report in reports), 4),
                )
            )  # fmt: skip
            self._lane.run(lambda: self._prune(result.bytes), self._pruned)
        self._changed()

    def _prune(self, needed: int) -> list[int]:
        """Delete what the recipe does not keep and, where the disk has no room for so many bytes more, the oldest of what it keeps because
        it is new; returns the steps of those."""
        self._store.prune(self._retention.kept)
        before = set(self._store.steps())
        for most in self._retention.fewer:
            room = self._store.room()
            if room is None or room >= needed:
                break
            self._store.prune(partial(self._retention.kept, most=most))
        return sorted(before - set(self._store.steps()))

    def _pruned(self, result: list[int] | Exception) -> None:
        """Say which checkpoints went for want of space; a failed deletion only takes some."""
        if isinstance(result, list) and result:
            steps = " and ".join(map(str, result))
            text = f"the disk is full: the checkpoint of step {steps}, which checkpoint.keep would keep, was deleted for a newer one"
            self._log.add(UserWarned(attempt=self._attempt, text=text))


def _ignore(result: object) -> None:
    """Ignore a failed deletion: it only takes space."""
