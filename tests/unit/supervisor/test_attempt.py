"""What an attempt makes of what agents say; the agents are played here, since the kernel gives up no process that it was told to kill."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dtrain.api.protocol import (
    TAG,
    Command,
    Heartbeat,
    PortsReserved,
    ProposeStop,
    ReservePorts,
    StopWorkers,
    WorkerExited,
    WorkerLiveness,
    WorkerReport,
)
from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.common.message import tagged
from dtrain.job.failure_kinds import FailureKind
from dtrain.job.job import Job, PluginChoice, Resources
from dtrain.launch import planner, registry
from dtrain.record.event_log import EventLog, read
from dtrain.record.events import Progress, TrainingStarted, WorkersStarted
from dtrain.record.folder import RunDir
from dtrain.supervisor.attempt import Attempt, AttemptContext
from dtrain.supervisor.beside.background import Lane
from dtrain.supervisor.beside.debugging import Debugging
from dtrain.supervisor.nodes.pool import AgentInfo
from dtrain.supervisor.outcome import Failed
from dtrain.supervisor.saving.memory_checkpoints import MemoryCheckpoints
from dtrain.supervisor.saving.start_point import StartPoint

NODES = ("node0", "node1")


@dataclass
class Agent:
    """The channel to an agent that does nothing."""

    told: list[Command] = field(default_factory=list)

    def send(self, command: Command) -> None:
        self.told.append(command)


@pytest.fixture
def agents() -> dict[str, Agent]:
    return {name: Agent() for name in NODES}


@pytest.fixture
def attempt(tmp_path: Path, agents: dict[str, Agent]) -> Attempt:
    """One that runs a script, with two workers on each of two nodes."""
    job = Job("a-run", script="true", folder=str(tmp_path), strategy=PluginChoice("script"), resources=Resources(4, 2))
    return begun(job, tmp_path, agents)


def begun(job: Job, tmp_path: Path, agents: dict[str, Agent]) -> Attempt:
    """One that runs, with two workers on each of two nodes."""
    nodes = [AgentInfo(name, "127.0.0.1", name) for name in NODES]
    log = EventLog(tmp_path / "events.jsonl")
    context = AttemptContext(
        "a-run",
        registry.strategy_of(job),
        agents,
        LocalCheckpointStore(tmp_path),
        Lane("test", lambda done: done.answer()),
        log,
        Debugging(RunDir(tmp_path), log, lambda typed: None),
        MemoryCheckpoints(planner.make(job), LocalCheckpointStore(tmp_path), log, "a-run"),
        tmp_path / "code.zip",
    )
    attempt = Attempt(1, planner.make(job), nodes, context, StartPoint())
    attempt.begin()
    for name in NODES:
        attempt.handle(name, PortsReserved(1, (1, 2, 3)), 0.0)
    for first, name in enumerate(NODES):
        attempt.handle(
            name,
            WorkersStarted(attempt=1, node=name, pids={str(rank): 100 + rank for rank in (2 * first, 2 * first + 1)}),
            0.0,
        )
    return attempt


def test_workers_that_do_not_train_yet_are_ended_at_once_and_others_agree_on_a_step(
    tmp_path: Path, agents: dict[str, Agent]
) -> None:
    for trains in (False, True):
        folder = tmp_path / str(trains)
        folder.mkdir()
        job = Job("a-run", task="t.py:T", folder=str(folder), strategy=PluginChoice("ddp"), resources=Resources(4, 2))
        attempt = begun(job, folder, agents)
        if trains:
            started = TrainingStarted(step=0, total_steps=9)
            attempt.handle("node0", WorkerReport(1, 0, tagged(started, TAG)), 1.0)
        attempt.leave(2.0)
        told = [command for name in NODES for command in agents[name].told if not isinstance(command, ReservePorts)]
        asked = ProposeStop(1) if trains else StopWorkers(1, 0.0)
        assert told[-1] == asked
        for agent in agents.values():
            agent.told.clear()


def test_nodes_whose_killed_workers_do_not_end_are_named_after_a_heartbeat(
    attempt: Attempt, agents: dict[str, Agent]
) -> None:
    for rank, node in enumerate(("node0", "node0", "node1")):
        attempt.handle(node, WorkerExited(1, rank, -9, None, out_of_memory=False), 1.0)
    attempt.tick(60.0)  # the time to settle is over
    assert any(isinstance(command, StopWorkers) for command in agents["node1"].told)
    attempt.tick(61.0)
    assert attempt.stuck(62.0) == set()
    assert attempt.outcome is None
    assert attempt.stuck(100.0) == {"node1"}
    attempt.lost("node1", "its workers were killed and do not end", 100.0)
    assert isinstance(attempt.outcome, Failed)
    assert attempt.outcome.failure.kind is FailureKind.NODE_LOST


def test_nodes_that_work_are_never_stuck(attempt: Attempt) -> None:
    attempt.tick(1000.0)
    assert attempt.stuck(2000.0) == set()


def test_a_day_of_progress_is_a_bounded_number_of_events(attempt: Attempt, tmp_path: Path) -> None:
    day = 24 * 60 * 60
    for second in range(day):
        signs = {str(rank): WorkerLiveness(second, 0.0, 0.0) for rank in range(4)}
        attempt.handle("node0", Heartbeat(1, signs), float(second))
    steps = [event.step for event in read(tmp_path / "events.jsonl") if isinstance(event, Progress)]
    assert sum(step < 60 for step in steps) > 30, "the beginning is seen second by second"
    assert steps[-1] > day - 60
    assert len(steps) < 6000
    assert (tmp_path / "events.jsonl").stat().st_size < 2 << 20
