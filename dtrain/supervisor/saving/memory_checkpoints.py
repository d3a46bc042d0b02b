"""Chooses the in-memory checkpoint that the next attempt resumes from: a vote over what the agents hold."""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from dtrain.api.cluster import Channel
from dtrain.api.memory_protocol import MemoryCheckpoint, MemoryHeld, MemoryPeer, MemoryWritten, WriteMemory
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import AgentEvent
from dtrain.api.strategy import RankInfo
from dtrain.checkpoint.store import CheckpointInfo, CheckpointOrigin, CheckpointShard, CheckpointStore
from dtrain.common.errors import CheckpointError
from dtrain.record import events
from dtrain.record.event_log import EventLog
from dtrain.supervisor.beside.background import Lane

WRITE_SECONDS = 120.0
"""For an in-memory checkpoint to be written to disk when the run ends."""
KEY_BYTES = 16
LATE = f"it took longer than {WRITE_SECONDS:g} s"
T = TypeVar("T")
MOST_USES = 2
"""Attempts that go on from one and make nothing newer; the next one goes on from the disk."""


class MemoryCheckpoints:
    """The in-memory checkpoints of all nodes, over all attempts of a run."""

    def __init__(self, launch: LaunchPlan, store: CheckpointStore, log: EventLog, run_id: str) -> None:
        job = launch.job
        self._store = store
        self._log = log
        self._origin = CheckpointOrigin(job.strategy.name, launch.workers, run_id)
        self._on = job.kind != "script" and job.checkpoint.memory_every_steps != 0
        self._key = secrets.token_hex(KEY_BYTES)
        self._servers: dict[str, MemoryPeer] = {}
        """Node → where its agent gives parts away."""
        self._held: dict[str, MemoryHeld] = {}
        self._sizes: dict[int, int] = {}
        """Attempt → its ranks."""
        self._written: dict[int, MemoryWritten] = {}
        self._used: Counter[tuple[int, int]] = Counter()

    def key(self, nodes: int) -> str:
        """Return the key by which agents prove to each other that they belong to the run; '' if they have nothing to
        transfer."""
        return self._key if self._on and nodes > 1 else ""

    def begin(self, attempt: int, ranks: int, resumed: MemoryCheckpoint | None) -> None:
        """The workers of an attempt are started on so many ranks. The agents drop all but what it goes on from."""
        self._sizes[attempt] = ranks
        kept = resumed.attempt if resumed else 0
        for node, held in self._held.items():
            self._held[node] = replace(held, parts=tuple(part for part in held.parts if part.attempt == kept))
        if resumed:
            self._used[resumed.attempt, resumed.step] += 1

    def listens(self, node: str, address: str, port: int) -> None:
        """An agent gives away what its node has."""
        self._servers[node] = MemoryPeer(address, port, ())

    def lose(self, node: str) -> None:
        """A node is gone, and what it had."""
        self._held.pop(node, None)
        self._servers.pop(node, None)

    def newest(self, *, after: int) -> MemoryCheckpoint | None:
        """The newest one of a later step than `after` that every rank's part is there of."""
        ranks: dict[tuple[int, int], dict[int, str]] = defaultdict(dict)
        without_part: dict[int, set[int]] = defaultdict(set)
        for node, held in self._held.items():
            for part in held.parts:
                if part.step < 0:
                    without_part[part.attempt].add(part.rank)
                else:
                    ranks[part.step, part.attempt].setdefault(part.rank, node)
        for (step, attempt), found in sorted(ranks.items(), reverse=True):
            if (
                step > after
                and self._used[attempt, step] < MOST_USES
                and len(found.keys() | without_part[attempt]) == self._sizes.get(attempt)
            ):
                return MemoryCheckpoint(attempt, step, self._peers(found))
        return None

    def _peers(self, found: Mapping[int, str]) -> tuple[MemoryPeer, ...]:
        by_node: dict[str, list[int]] = defaultdict(list)
        for rank, node in sorted(found.items()):
            by_node[node].append(rank)
        nowhere = MemoryPeer("", 0, ())
        return tuple(replace(self._servers.get(node, nowhere), ranks=tuple(ranks)) for node, ranks in by_node.items())

    def partner(self, node: str, ranks: Mapping[str, Sequence[RankInfo]]) -> MemoryPeer | None:
        """Return the node whose parts a node copies: the node half way round, so that a pair of neighbours may be
        lost at once."""
        names = list(ranks)
        if not self._on or len(names) < 2:
            return None
        other = names[(names.index(node) + len(names) // 2) % len(names)]
        server = self._servers.get(other)
        return replace(server, ranks=tuple(info.rank for info in ranks[other])) if server and server.port else None

    def save(self, channels: Mapping[str, Channel], lane: Lane, turn: Callable[[], None]) -> None:
        """The run ends without another attempt: have the newest one written to disk, if it is newer than what is there. `turn` handles
        what happens meanwhile."""
        if self.newest(after=0) is None:
            return
        deadline = time.monotonic() + WRITE_SECONDS

        def waited(task: Callable[[], T]) -> T | Exception:
            done: list[T | Exception] = []
            lane.run(task, done.append)
            while not done and time.monotonic() < deadline:
                turn()
            return done[0] if done else TimeoutError(LATE)

        steps = waited(self._store.steps)
        found = None if isinstance(steps, Exception) else self.newest(after=max(steps, default=0))
        if found is None:
            return
        began = time.monotonic()
        self._written.clear()
        ranks = self._ask(found, channels)
        while len(self._written) < ranks and time.monotonic() < deadline:
            turn()
        saved = waited(partial(self._commit, found, ranks))
        if isinstance(saved, Exception):
            problem = f"the in-memory checkpoint could not be written: {saved}"
            self._log.add(events.CheckpointFailed(attempt=found.attempt, step=found.step, error=problem))
            return
        self._log.add(
            events.CheckpointSaved(
                attempt=found.attempt, step=found.step, folder=saved.name, bytes=saved.bytes, weights=saved.weights,
                seconds=round(time.monotonic() - began, 4),
            )
        )  # fmt: skip

    def _commit(self, memory: MemoryCheckpoint, ranks: int) -> CheckpointInfo:
        """Commit what the nodes wrote; raises `CheckpointError`."""
        problem = next((one.error for one in self._written.values() if one.error), "")
        if not problem and len(self._written) < ranks:
            problem = LATE
        try:
            if problem:
                raise CheckpointError(problem)
            shards = [CheckpointShard(one.files, one.weights) for _, one in sorted(self._written.items())]
            return self._store.commit(memory.attempt, memory.step, shards, self._origin)
        except CheckpointError:
            self._store.abandon(memory.attempt, memory.step)
            raise

    def _ask(self, memory: MemoryCheckpoint, channels: Mapping[str, Channel]) -> int:
        """Ask each node that has parts for those of its ranks; returns the number of ranks."""
        asked: set[int] = set()
        for node, held in self._held.items():
            here = {part.rank for part in held.parts if (part.attempt, part.step) == (memory.attempt, memory.step)}
            channel = channels.get(node)
            if channel and here - asked:
                channel.send(WriteMemory(memory.attempt, memory.step, tuple(sorted(here - asked))))
                asked |= here
        return len(asked)

    def handle(self, node: str, event: AgentEvent) -> None:
        """Take an event of an agent."""
        if isinstance(event, MemoryHeld):
            self._held[node] = event
        elif isinstance(event, MemoryWritten):
            self._written[event.rank] = event
