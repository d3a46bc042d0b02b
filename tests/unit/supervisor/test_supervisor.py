"""The supervisor's answers to what agents and the cluster say; agents are played by the test, the supervisor is the real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from scripted import ScriptedAgent, ScriptedCluster, Supervised, script_job, task_job

from dtrain.api import reports
from dtrain.api.cluster import NodeDraining, NodeLost, PreemptionNotice
from dtrain.api.protocol import TAG, ProposeStop, StartWorkers, StopWorkers, WorkerExited, WorkerReport
from dtrain.common.errors import ClusterError, Exit
from dtrain.common.message import tagged
from dtrain.common.serde import JsonObject
from dtrain.record import events, history
from dtrain.supervisor.leaving.stop_request import LeaseLost, StopMode, StopRequest


def _sent(report: reports.Report) -> JsonObject:
    return tagged(report, TAG)


def started(path: Path, cluster: ScriptedCluster | None = None, **job: Any) -> Supervised:
    """A run whose workers were started on all nodes."""
    supervised = Supervised(path, cluster or ScriptedCluster(), script_job(path, **job))
    supervised.wait_event(events.WorkersStarted, job.get("nodes", 2))
    return supervised


def exit_all(supervised: Supervised, code: int = 0) -> None:
    for agent in list(supervised.cluster.channels.values()):
        for rank in list(agent.ranks):
            agent.exit(rank, code)


def test_a_run_whose_workers_all_end_well_is_done(tmp_path: Path) -> None:
    supervised = started(tmp_path)
    exit_all(supervised)
    assert supervised.finish() is Exit.DONE
    assert supervised.events(events.RunEnded)[0].reason == "finished"


def test_a_killed_worker_begins_a_second_attempt(tmp_path: Path) -> None:
    supervised = started(tmp_path)
    supervised.cluster.agents["node1"].exit(1, -9)
    supervised.wait_event(events.WorkersStarted, 4)
    exit_all(supervised)
    assert supervised.finish() is Exit.DONE
    assert [event.kind for event in supervised.events(events.FailureOccurred)] == ["killed"]


def test_an_agent_that_fails_to_start_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    supervised = Supervised(
        tmp_path, ScriptedCluster(spare=9, refuse_start=2), script_job(tmp_path, nodes=1, workers=1)
    )
    supervised.wait_event(events.WorkersStarted)
    exit_all(supervised)
    assert supervised.finish() is Exit.DONE
    hopeless = Supervised(
        tmp_path, ScriptedCluster(spare=99, refuse_start=99), script_job(tmp_path, nodes=1, workers=1)
    )
    with pytest.raises(ClusterError, match="the agents end as soon as they are started"):
        hopeless.finish()


def test_a_silent_node_is_lost_and_replaced(tmp_path: Path) -> None:
    cluster = ScriptedCluster(spare=1)
    supervised = started(tmp_path, cluster, heartbeat_seconds=0.6)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.1):
            for name, agent in list(cluster.channels.items()):
                if name != "node1":
                    agent.beat()

    cluster.agents["node1"].mute = True
    threading.Thread(target=beat, daemon=True).start()
    lost = supervised.wait_event(events.NodeLost)
    assert (lost.node, "said nothing" in lost.reason) == ("node1", True)
    supervised.wait_event(events.WorkersStarted, 4)
    stop.set()
    exit_all(supervised)
    assert supervised.finish() is Exit.DONE
    assert cluster.replaced == ["node1"]


def test_events_of_an_older_attempt_are_ignored(tmp_path: Path) -> None:
    supervised = started(tmp_path)
    supervised.cluster.agents["node1"].exit(1, -9)
    supervised.wait_event(events.WorkersStarted, 4)
    supervised.cluster.agents["node0"].say(WorkerExited(1, 0, 1, None, out_of_memory=False))
    exit_all(supervised)
    assert supervised.finish() is Exit.DONE
    assert len(supervised.events(events.FailureOccurred)) == 1


def test_of_two_failures_at_once_the_one_from_outside_is_the_cause(tmp_path: Path) -> None:
    supervised = started(tmp_path, restarts=0)
    agent = supervised.cluster.agents["node0"]
    body = _sent(reports.WorkerFailed("cascade", "RuntimeError: Connection reset by peer"))
    agent.say(WorkerReport(1, 0, body))
    agent.exit(0, 1)
    supervised.cluster.agents["node1"].exit(1, -9)
    supervised.finish()
    (failure,) = supervised.events(events.FailureOccurred)
    assert (failure.kind, failure.rank) == ("killed", 1)


def test_a_stop_while_nodes_are_awaited_ends_the_run_resumable(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, ScriptedCluster(silent=True), script_job(tmp_path))
    supervised.inbox.put(("", StopRequest(StopMode.GRACEFUL, "stopped by dtrain stop")))
    assert supervised.finish() is Exit.RESUMABLE
    assert "before the workers were started" in supervised.events(events.RunEnded)[0].reason


def test_a_preemption_notice_stops_a_script_with_a_grace(tmp_path: Path) -> None:
    supervised = started(tmp_path)
    supervised.inbox.put(("", PreemptionNotice("SLURM preempts the job")))
    assert supervised.finish() is Exit.RESUMABLE
    stops = [command for command in supervised.cluster.agents["node0"].told if isinstance(command, StopWorkers)]
    assert stops[0].grace_seconds > 0


def test_a_lost_lease_ends_the_supervisor_without_an_end_of_the_run(tmp_path: Path) -> None:
    supervised = started(tmp_path)
    supervised.inbox.put(("", LeaseLost("process 1 on elsewhere")))
    with pytest.raises(ClusterError, match="another supervisor has taken over"):
        supervised.finish()
    assert not supervised.events(events.RunEnded)


def test_a_node_that_drains_is_not_used_again_after_a_failure_during_the_drain(tmp_path: Path) -> None:
    cluster = ScriptedCluster()
    supervised = started(tmp_path, cluster, workers=4, min_workers=2)
    supervised.inbox.put(("node1", NodeDraining("Ray drains its node")))
    supervised.wait_event(events.ResizeRequested)
    supervised.wait_event(events.WorkersStarted, 3)
    assert supervised.events(events.AttemptStarted)[1].nodes == ("node0",)
    exit_all(supervised)
    assert supervised.finish() is Exit.DONE


class BlockedFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """A file system whose operations wait while the gate is closed."""

    protocol = "blocked"
    gate = threading.Event()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"auto_mkdir": True})

    def _wait(self) -> None:
        assert self.gate.wait(60)

    def find(self, *args: Any, **kwargs: Any) -> Any:
        self._wait()
        return super().find(*args, **kwargs)

    def pipe_file(self, *args: Any, **kwargs: Any) -> Any:
        self._wait()
        return super().pipe_file(*args, **kwargs)

    def cat_file(self, *args: Any, **kwargs: Any) -> Any:
        self._wait()
        return super().cat_file(*args, **kwargs)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("blocked://"))


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    fsspec.register_implementation("blocked", BlockedFileSystem, clobber=True)
    BlockedFileSystem.gate.set()
    yield BlockedFileSystem.gate
    BlockedFileSystem.gate.set()


def test_a_stop_and_a_lost_node_are_answered_while_storage_hangs(tmp_path: Path, gate: threading.Event) -> None:
    (tmp_path / "nothing.py").write_text("class Nothing: ...\n")
    (tmp_path / "remote").mkdir()
    cluster = ScriptedCluster(spare=1)
    job = task_job(tmp_path, nodes=2, url=f"blocked://{tmp_path}/remote")
    supervised = Supervised(tmp_path, cluster, job)
    supervised.wait_event(events.WorkersStarted, 2)
    gate.clear()
    for rank, node in enumerate(("node0", "node1")):
        body = _sent(reports.ShardWritten(5, {f"rank{rank}": (1, "0")}, ""))
        cluster.agents[node].say(WorkerReport(1, rank, body))
    cluster.agents["node1"].say(NodeLost("its agent ended"))
    supervised.wait_event(events.NodeLost)
    supervised.wait_event(events.FailureOccurred)
    supervised.inbox.put(("", StopRequest(StopMode.GRACEFUL, "stopped by dtrain stop")))
    assert supervised.finish() is Exit.RESUMABLE
    assert not gate.is_set(), "all of it was answered while storage did not"


def test_a_warning_during_a_save_is_answered_at_once_and_the_checkpoint_is_committed(
    tmp_path: Path, gate: threading.Event
) -> None:
    (tmp_path / "nothing.py").write_text("class Nothing: ...\n")
    (tmp_path / "remote").mkdir()
    cluster = ScriptedCluster()
    supervised = Supervised(tmp_path, cluster, task_job(tmp_path, url=f"blocked://{tmp_path}/remote"))
    supervised.wait_event(events.WorkersStarted)
    agent = cluster.agents["node0"]
    staged = supervised.run.checkpoints / "step-00000005-attempt-0001"
    there = tmp_path / "remote" / supervised.run.id / "checkpoints" / staged.name
    there.mkdir(parents=True)
    for rank in (0, 1):
        (there / f"rank{rank}").write_bytes(b"x")
    gate.clear()
    for rank in (0, 1):
        agent.say(WorkerReport(1, rank, _sent(reports.ShardWritten(5, {f"rank{rank}": (1, "0")}, ""))))
    agent.say(WorkerReport(1, 0, _sent(events.TrainingStarted(step=0, total_steps=9))))
    supervised.inbox.put(("", PreemptionNotice("the time limit is near")))
    supervised.wait(lambda: any(isinstance(one, ProposeStop) for one in agent.told), "the question for a step")
    assert not supervised.events(events.CheckpointSaved)
    gate.set()
    for rank in (0, 1):
        agent.say(WorkerReport(1, rank, _sent(reports.StopProposal(5))))
    supervised.wait_event(events.DrainAgreed)
    for rank in (0, 1):
        agent.say(WorkerReport(1, rank, _sent(reports.LeftAtStep(5))))
    exit_all(supervised)
    assert supervised.finish() is Exit.RESUMABLE
    assert [event.step for event in supervised.events(events.CheckpointSaved)] == [5]


def test_a_run_that_finishes_while_it_is_asked_to_stop_is_done(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text("class Nothing: ...\n")
    supervised = Supervised(tmp_path, ScriptedCluster(), task_job(tmp_path))
    supervised.wait_event(events.WorkersStarted)
    agent = supervised.cluster.agents["node0"]
    for rank in (0, 1):
        agent.say(WorkerReport(1, rank, _sent(reports.StepsDone())))
    agent.say(WorkerReport(1, 0, _sent(events.TrainingStarted(step=0, total_steps=0))))
    supervised.inbox.put(("", StopRequest(StopMode.GRACEFUL, "stopped by dtrain stop")))
    supervised.wait(lambda: any(isinstance(one, ProposeStop) for one in agent.told), "the question for a step")
    exit_all(supervised)
    assert supervised.finish() is Exit.DONE


def test_after_a_rollback_every_attempt_is_told_the_step_and_no_failure_is_charged(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, ScriptedCluster(), task_job(tmp_path))
    supervised.wait_event(events.WorkersStarted)
    agent = supervised.cluster.agents["node0"]
    bad = events.BadStep(step=7, why="the loss is nan", answer="rollback", metric="loss", value=None, rank=1, shard=1)
    agent.say(WorkerReport(1, 0, _sent(bad)))
    _come_to_the_end(agent)
    supervised.wait_event(events.WorkersStarted, 2)
    agent.exit(1, -9)
    supervised.wait_event(events.WorkersStarted, 3)
    told = [one.rolled_back for one in agent.told if isinstance(one, StartWorkers)]
    assert told == [(), (7,), (7,)]
    assert [event.kind for event in supervised.events(events.FailureOccurred)] == ["killed"]
    assert history.rolled_back(supervised.run) == (7,)
    _come_to_the_end(agent)
    assert supervised.finish() is Exit.DONE


def _come_to_the_end(agent: ScriptedAgent) -> None:
    for rank in list(agent.ranks):
        agent.say(WorkerReport(agent.attempt, rank, _sent(reports.StepsDone())))
        agent.exit(rank, 0)
