"""A cluster whose agents are played by the test, for driving a real supervisor without processes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.api.cluster import Allocation, NodeLost
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import (
    AgentReady,
    Command,
    Heartbeat,
    PortsReserved,
    ReservePorts,
    StartWorkers,
    StopWorkers,
    WorkerExited,
    WorkerLiveness,
)
from dtrain.common.errors import Exit
from dtrain.job.job import Job, PluginChoice, Recovery, Resources
from dtrain.launch import planner
from dtrain.record import folder
from dtrain.record.event_log import EventLog, read
from dtrain.record.events import Event, WorkersStarted
from dtrain.record.folder import RunDir
from dtrain.supervisor.inbox import Item, SupervisorInbox
from dtrain.supervisor.supervisor import run_attempts

PATIENCE_SECONDS = 30.0


class ScriptedAgent:
    """Answers as an agent does: ports, started workers, and their end when it is told to stop them."""

    def __init__(self, name: str, put: Callable[[str, Item], None]) -> None:
        self.name = name
        self._put = put
        self.told: list[Command] = []
        self.ranks: list[int] = []
        self.attempt = 0
        self.mute = False

    def send(self, command: Command) -> None:
        """See `Channel.send`."""
        self.told.append(command)
        if self.mute:
            return
        if isinstance(command, ReservePorts):
            self.say(PortsReserved(command.attempt, tuple(range(2000, 2000 + command.workers))))
        elif isinstance(command, StartWorkers):
            self.attempt, self.ranks = command.attempt, [rank.rank for rank in command.ranks]
            self.say(
                WorkersStarted(
                    attempt=command.attempt, node=self.name, pids={str(rank): 100 + rank for rank in self.ranks}
                )
            )
        elif isinstance(command, StopWorkers):
            for rank in list(self.ranks):
                self.exit(rank, -15 if command.grace_seconds else -9)

    def say(self, item: Item) -> None:
        """An event of this agent."""
        self._put(self.name, item)

    def exit(self, rank: int, code: int) -> None:
        """A worker of this agent ends."""
        self.ranks.remove(rank)
        self.say(WorkerExited(self.attempt, rank, code, None, out_of_memory=False))

    def beat(self, **signs: WorkerLiveness) -> None:
        """A heartbeat."""
        self.say(Heartbeat(self.attempt, dict(signs)))


@dataclass
class ScriptedCluster(Allocation):
    """Gives as many agents as the plan has nodes; `spare` more replace lost ones."""

    spare: int = 0
    refuse_start: int = 0
    """Agents that end before they are ready."""
    silent: bool = False
    """Agents never become ready."""
    agents: dict[str, ScriptedAgent] = field(default_factory=dict)
    channels: dict[str, ScriptedAgent] = field(default_factory=dict)
    requeues = False
    replaced: list[str] = field(default_factory=list)
    slow_seconds: float = 0.0
    """How long the cluster needs to answer `replace`."""
    _put: Callable[[str, Item], None] = lambda node, item: None

    @contextmanager
    def allocate(self, plan: LaunchPlan, run: RunDir, inbox: Any) -> Iterator[ScriptedCluster]:
        """See `Cluster.allocate`."""
        self._put = lambda node, item: inbox.put((node, item))
        for number in range(plan.nodes):
            self.start(f"node{number}")
        yield self

    def start(self, name: str) -> None:
        """An agent comes up, or ends at once."""
        agent = self.agents[name] = self.channels[name] = ScriptedAgent(name, self._put)
        if self.silent:
            return
        if self.refuse_start:
            self.refuse_start -= 1
            agent.say(NodeLost("its agent ended with code 1"))
        else:
            agent.say(AgentReady(name, "10.0.0.1", 4, 0, 1, sees_run=True))

    def replace(self, node: str) -> bool:
        """See `Allocation.replace`."""
        time.sleep(self.slow_seconds)
        if not self.spare:
            return False
        self.spare -= 1
        del self.channels[node]
        self.replaced.append(node)
        self.start(f"{node}.{len(self.replaced)}")
        return True


class Supervised:
    """A supervisor in a thread, on a scripted cluster."""

    def __init__(self, path: Path, cluster: ScriptedCluster, job: Job) -> None:
        self.run = folder.create(path, job)
        self.cluster = cluster
        self.inbox: SupervisorInbox = queue.SimpleQueue()
        self.code: Exit | None = None
        self.error: BaseException | None = None
        self._log = EventLog(self.run.events)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            with self.run.lock() as lease:
                cluster: Any = self.cluster
                launch = planner.make(self.run.job())
                self.code = run_attempts(self.run, launch, cluster, self._log, self.inbox, lease)
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error

    def events(self, kind: type[Event]) -> list[Any]:
        """Events of one kind so far."""
        return [event for event in read(self.run.events) if isinstance(event, kind)]

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """The condition's value as soon as it is true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if value := condition():
                return value
            assert self._thread.is_alive() or condition(), f"the supervisor ended before {what}: {self.error}"
            time.sleep(0.005)
        raise AssertionError(f"waited {PATIENCE_SECONDS:g} s for {what}")

    def wait_event(self, kind: type[Event], count: int = 1) -> Any:
        """The newest event of a kind, when there are that many."""
        return self.wait(lambda: len(self.events(kind)) >= count and self.events(kind), f"{count} {kind.kind_name}")[-1]

    def finish(self) -> Exit | None:
        """The exit code at the end."""
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive(), "the supervisor goes on"
        if self.error:
            raise self.error
        return self.code


def script_job(path: Path, *, workers: int = 2, nodes: int = 2, min_workers: int | None = None, **recovery: Any) -> Job:
    """A job that needs nothing of its workers."""
    return Job(
        "a-run", script="true", folder=str(path), strategy=PluginChoice("script"),
        resources=Resources(workers, nodes, min_workers=min_workers), recovery=Recovery(**({"backoff_seconds": 0.0} | recovery)),
    )  # fmt: skip


def task_job(path: Path, *, workers: int = 2, nodes: int = 1, url: str | None = None, **recovery: Any) -> Job:
    """A job with steps and checkpoints; its workers are played by the test."""
    import dataclasses

    from dtrain.job.job import Storage, Train

    job = script_job(path, workers=workers, nodes=nodes, **recovery)
    return dataclasses.replace(
        job, script=None, task="nothing.py:Nothing", strategy=PluginChoice("ddp"), train=Train(steps=10, global_batch=4, shards=4),
        storage=Storage(url=url),
    )  # fmt: skip
