"""One attempt, from its rendezvous to its last exit, as a state machine that is fed what the agents say.

It decides nothing about the run: its outcome is a value for the supervisor. Time comes in from outside.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dtrain.api.cluster import Channel
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import (  # fmt: skip
    Command,
    DumpStacks,
    Event,
    Heartbeat,
    PortsReserved,
    ReservePorts,
    SetJob,
    StartWorkers,
    StopWorkers,
    WorkerCommand,
    WorkerExited,
    WorkerLiveness,
    WorkerReport,
    WorkersStarted,
)
from dtrain.api.strategy import RankInfo, RendezvousInfo, Strategy
from dtrain.checkpoint.store import CheckpointInfo, CheckpointShard, CheckpointStore
from dtrain.common.errors import CheckpointError
from dtrain.common.serde import to_dict
from dtrain.run.event_log import EventLog
from dtrain.run.lock import Lease
from dtrain.spec.failures import Failure, FailureKind, exit_kind
from dtrain.supervisor.failure_policy import cause, conclusive
from dtrain.supervisor.results import Drained, Failed, Outcome, Succeeded

BUG_SETTLE_SECONDS = 0.25
SETTLE_SECONDS = 1.5
STACKS_SECONDS = 1.0
PROGRESS_SECONDS = 1.0
MOST_RANKS_SHOWN = 64


class Phase(Enum):
    """How far an attempt is."""

    RENDEZVOUS = "rendezvous"
    RUNNING = "running"
    SETTLING = "settling"
    """A failure is known, but maybe not its cause: wait a moment for the other workers' reports."""
    ENDING = "ending"
    """All workers are being killed."""
    OVER = "over"


@dataclass(frozen=True)
class AgentInfo:
    """A node whose agent is ready."""

    name: str
    address: str
    host: str
    sees_run: bool = True
    """False: it must be told the job."""


class Attempt:
    """Feed it events with `handle` and time with `tick` until `outcome` is there."""

    def __init__(
        self,
        number: int,
        plan: LaunchPlan,
        strategy: Strategy,
        nodes: list[AgentInfo],
        channels: Mapping[str, Channel],
        *,
        run_id: str,
        store: CheckpointStore,
        log: EventLog,
        resume: CheckpointInfo | None,
        lease: Lease,
    ) -> None:
        self.number = number
        self.nodes = len(nodes)
        self.outcome: Outcome | None = None
        self.saved_step = resume.step if resume else 0
        self._plan = plan
        self._strategy = strategy
        self._settings = plan.job.recovery
        self._nodes = nodes
        self._channels = channels
        self._run_id = run_id
        self._store = store
        self._log = log
        self._resume = resume
        self._lease = lease
        self._phase = Phase.RENDEZVOUS
        self._places = dict(zip((node.name for node in nodes), plan.places(), strict=True))
        self._owner = {place.rank: node for node, places in self._places.items() for place in places}
        self._running = set(self._owner)
        self._started = False
        self._ports: dict[str, tuple[int, ...]] = {}
        self._signs: dict[int, WorkerLiveness] = {}
        self._reports: dict[int, Failure] = {}
        self._candidates: list[Failure] = []
        self._parts: dict[int, dict[int, CheckpointShard]] = {}
        self._save_failed: dict[int, str] = {}
        self._gates: dict[int, int] = {}
        self._leaving = False
        self._agreed = False
        self._left_step: int | None = None
        self._stopped = ""
        self._deadline: float | None = None
        self._progress_at = 0.0
        self._ending_since: float | None = None

    def begin(self) -> None:
        """Ask every node for its ports."""
        for one in self._nodes:
            if not one.sees_run:
                self._send(one.name, SetJob(to_dict(self._plan.job)))
        for node, places in self._places.items():
            # One for each worker, and on the first node one more for a service of rank 0's (Horovod's rendezvous).
            self._send(node, ReservePorts(self.number, len(places) + 1))

    def handle(self, node: str, event: Event, now: float) -> None:
        """Something an agent said about this attempt."""
        if node not in self._places:
            return
        if isinstance(event, PortsReserved):
            self._ports[node] = event.ports
            if len(self._ports) == len(self._places) and self._phase is Phase.RENDEZVOUS:
                self._start()
        elif isinstance(event, WorkersStarted):
            self._log.add("started", attempt=self.number, node=node, pids=event.pids)
            if self._leaving and self._phase is Phase.RUNNING and self._plan.job.kind != "script":
                # What was told before its workers were there, reached none of them; twice does no harm.
                self._send(node, WorkerCommand(self.number, {"do": "gate"}))
        elif isinstance(event, Heartbeat):
            self._signs |= {int(rank): sign for rank, sign in event.signs.items()}
            self._show_progress(now)
        elif isinstance(event, WorkerReport):
            self._said(event.rank, event.body)
        elif isinstance(event, WorkerExited):
            self._exited(event, now)

    def lost(self, node: str, reason: str, now: float) -> None:
        """A node is gone, and its workers with it."""
        if node not in self._places:
            return
        self._running -= {rank for rank, owner in self._owner.items() if owner == node}
        self._candidate(Failure(FailureKind.NODE_LOST, f"node {node} was lost: {reason}", node=node), now)
        self._close()

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            if self._phase in (Phase.SETTLING, Phase.RUNNING):
                self.kill()
        if self._phase is Phase.RUNNING and not self._leaving:
            self._look_for_hang(now)
        if self._phase is Phase.ENDING and self._ending_since is None:
            self._ending_since = now

    def stuck(self, now: float) -> set[str]:
        """Nodes whose workers were killed long ago and have not ended."""
        if self._phase is not Phase.ENDING or self._ending_since is None:
            return set()
        waited = now - self._ending_since
        return {self._owner[rank] for rank in self._running} if waited > self._settings.heartbeat_seconds else set()

    def leave(self, now: float) -> None:
        """Have the workers agree on a step, save at it and end; scripts get a SIGTERM. Killed after the grace."""
        if self._phase is not Phase.RUNNING:
            self._leaving = True
            self.kill()
            return
        if self._leaving:
            return
        self._leaving = True
        self._deadline = now + self._settings.grace_seconds
        if self._plan.job.kind == "script":
            self._send_all(StopWorkers(self.number, max(0.1, self._settings.grace_seconds)))
        else:
            self._send_all(WorkerCommand(self.number, {"do": "gate"}))

    def kill(self) -> None:
        """End all workers now."""
        if self._phase is Phase.OVER:
            return
        self._phase = Phase.ENDING
        self._send_all(StopWorkers(self.number, 0.0))
        if not self._started:
            self._running.clear()
        self._close()

    def _start(self) -> None:
        """All ports are known: fork the workers everywhere."""
        self._phase = Phase.RUNNING
        self._started = True
        addresses = {node.name: node.address for node in self._nodes}
        order = [(node, place) for node, places in self._places.items() for place in places]
        peers = RendezvousInfo(
            addresses=tuple(addresses[node] for node, _ in order),
            ports=tuple(port for node in self._places for port in self._ports[node][:-1]),
            service=self._ports[order[0][0]][-1],
            run_id=self._run_id,
            attempt=self.number,
        )
        # Every node would be told of every rank: quadratic in their number.
        told = dataclasses.replace(peers, addresses=peers.addresses[:1], ports=peers.ports[:1])
        for node, places in self._places.items():
            environment = {str(place.rank): self._environment(place, peers) for place in places}
            checkpoint, step = (self._resume.name, self._resume.step) if self._resume else (None, 0)
            self._send(node, StartWorkers(self.number, tuple(places), told, environment, checkpoint, step))

    def _environment(self, place: RankInfo, peers: RendezvousInfo) -> dict[str, str]:
        own = {"DTRAIN_RUN": self._run_id, "DTRAIN_ATTEMPT": str(self.number), "DTRAIN_RANK": str(place.rank)}
        return own | self._strategy.environment(place, peers)

    def _said(self, rank: int, body: dict[str, Any]) -> None:
        word = body["say"]
        fields = {key: value for key, value in body.items() if key != "say"}
        if word in ("training", "metrics", "evaluation", "warning"):
            self._log.add(word, attempt=self.number, **fields)
        elif word == "part":
            self._part(rank, fields)
        elif word == "save_failed":
            self._abandon(fields["step"], fields["error"])
        elif word == "gate":
            self._gate(rank, int(fields["step"]))
        elif word == "stop":
            self._stop_by_function(fields["reason"])
        elif word == "left":
            self._left_step = fields["step"]
        elif word == "failed":
            report = self._failure(FailureKind(fields["failure"]), fields["message"], rank)
            self._reports[rank] = dataclasses.replace(
                report, traceback=fields["traceback"], where=fields["where"], exit_code=fields["exit_code"]
            )

    def _part(self, rank: int, fields: dict[str, Any]) -> None:
        """A worker's part of a checkpoint is on disk; with the last one it is committed."""
        step = fields["step"]
        if step in self._save_failed:
            return
        parts = self._parts.setdefault(step, {})
        files = {name: (int(size), str(digest)) for name, (size, digest) in fields["files"].items()}
        parts[rank] = CheckpointShard(files, fields["weights"])
        if len(parts) < len(self._owner):
            return
        self._lease.check()
        facts = {"strategy": self._plan.job.strategy.name, "workers": self._plan.workers, "run": self._run_id}
        try:
            done = self._store.commit(self.number, step, [parts[rank] for rank in sorted(parts)], facts)
        except CheckpointError as error:
            self._abandon(step, error.message)
            return
        del self._parts[step]
        self.saved_step = step
        self._log.add(
            "checkpoint", attempt=self.number, step=step, folder=done.name, bytes=done.bytes, weights=done.weights,
            seconds=round(fields["seconds"], 4), stall_seconds=round(fields["stall_seconds"], 4),
        )  # fmt: skip
        self._store.prune(self._plan.job.checkpoint.keep)

    def _abandon(self, step: int, error: str) -> None:
        """A checkpoint cannot be finished: say so once, free its space, and train on."""
        self._parts.pop(step, None)
        self._store.abandon(self.number, step)
        if step not in self._save_failed:
            self._save_failed[step] = error
            self._log.add("checkpoint_failed", attempt=self.number, step=step, error=error)

    def _stop_by_function(self, reason: str) -> None:
        """The user's function wants the run to end well: the ranks agree on a step, as if they were asked to leave."""
        if not self._stopped:
            self._stopped = reason
            self._send_all(WorkerCommand(self.number, {"do": "gate"}))

    def _gate(self, rank: int, step: int) -> None:
        self._gates[rank] = step
        self._agree()

    def _agree(self) -> None:
        """When every worker that still runs has named its gate, the highest is the step to leave at."""
        if self._agreed or not self._gates or not self._gates.keys() >= self._running:
            return
        self._agreed = True
        step = max(self._gates.values())
        self._log.add("leaving", attempt=self.number, step=step)
        self._send_all(WorkerCommand(self.number, {"do": "leave", "step": step}))

    def _exited(self, event: WorkerExited, now: float) -> None:
        self._running.discard(event.rank)
        report = self._reports.pop(event.rank, None)
        if (
            event.code
            and (report or self._phase is not Phase.ENDING)
            and not (self._leaving and self._is_our_signal(event.code))
        ):
            kind, words = exit_kind(event.code, out_of_memory=event.out_of_memory)
            failure = report or self._failure(kind, words, event.rank)
            self._candidate(failure, now, code=event.code, step=event.step)
        self._agree()
        self._close()

    def _is_our_signal(self, code: int) -> bool:
        return self._plan.job.kind == "script" or code == -signal.SIGTERM

    def _failure(self, kind: FailureKind, message: str, rank: int | None) -> Failure:
        node = self._owner[rank] if rank is not None else ""
        return Failure(kind, message, rank=rank, node=node)

    def _candidate(self, failure: Failure, now: float, *, code: int = 1, step: int | None = None) -> None:
        """A possible cause; one that explains itself ends the wait for others."""
        known = dataclasses.replace(failure, code=code, step=step, saved_step=self.saved_step, time=time.time())
        self._candidates.append(known)
        if conclusive(known):
            self.kill()
        elif self._phase is Phase.RUNNING:
            self._phase = Phase.SETTLING
            self._deadline = now + (
                BUG_SETTLE_SECONDS if known.kind is FailureKind.BUG and known.traceback else SETTLE_SECONDS
            )

    def _close(self) -> None:
        """When nobody runs any more, this attempt is over."""
        if self._running or self._phase is Phase.OVER:
            return
        self._phase = Phase.OVER
        if self._candidates:
            self.outcome = Failed(cause(self._candidates))
        elif self._leaving:
            self.outcome = Drained(self._left_step)
        else:
            last = max(self._save_failed, default=-1)
            self.outcome = Succeeded(self._save_failed[last] if last > self.saved_step else "", self._stopped_early())

    def _stopped_early(self) -> str:
        step = "" if self._left_step is None else f" at step {self._left_step}"
        return f"stopped by the function{step}: {self._stopped}" if self._stopped else ""

    def _look_for_hang(self, now: float) -> None:
        """All idle for too long, or one stopped for too long; a worker that only waits for a busy one is no hang."""
        signs = {rank: self._signs[rank] for rank in self._running if rank in self._signs}
        limit = self._settings.hang_seconds
        stopped = [rank for rank, sign in signs.items() if sign.stopped_seconds >= limit]
        idle = len(signs) == len(self._running) and all(sign.idle_seconds >= limit for sign in signs.values())
        if not signs or not (stopped or idle):
            return
        behind = min(signs, key=lambda rank: (signs[rank].step or 0, -signs[rank].idle_seconds))
        rank = stopped[0] if stopped else behind
        why = "is stopped by a signal" if stopped else "made no step, no output and used no CPU time"
        self._log.add(
            "hang", attempt=self.number, rank=rank, steps={str(r): sign.step for r, sign in sorted(signs.items())}
        )
        self._send_all(DumpStacks(self.number))
        message = f"rank {rank} {why} for {limit:g} s; the stacks of all ranks are in their logs"
        # Not conclusive by `_candidate`: the workers need a moment to write their stacks.
        self._phase = Phase.SETTLING
        self._deadline = now + STACKS_SECONDS
        self._candidates.append(
            Failure(
                FailureKind.HANG,
                message,
                rank,
                self._owner[rank],
                signs[rank].step,
                saved_step=self.saved_step,
                time=time.time(),
            )
        )

    def _show_progress(self, now: float) -> None:
        if now < self._progress_at:
            return
        self._progress_at = now + PROGRESS_SECONDS
        steps = {str(rank): sign.step for rank, sign in sorted(self._signs.items()) if sign.step is not None}
        if steps:
            shown = steps if len(steps) <= MOST_RANKS_SHOWN else {}
            self._log.add("progress", attempt=self.number, step=min(steps.values()), steps=shown)

    def _send(self, node: str, command: Command) -> None:
        if node in self._channels:
            self._channels[node].send(command)

    def _send_all(self, command: Command) -> None:
        for node in self._places:
            self._send(node, command)
