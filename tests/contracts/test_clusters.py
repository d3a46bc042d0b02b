"""What every installed cluster promises to the supervisor, tried with real agents."""

from __future__ import annotations

import dataclasses
import os
import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live import running, wait_for

from dtrain.api.cluster import ClusterEvent, NodeLost
from dtrain.api.protocol import AgentReady, Event, PortsReserved, ReservePorts
from dtrain.launch import planner, registry
from dtrain.run import folder
from dtrain.run.folder import RunDir
from dtrain.spec.job import Job, PluginChoice, Resources

AgentInbox = queue.SimpleQueue[tuple[str, Event | ClusterEvent]]
CLUSTERS = ["local"]
"""Clusters that need a lab of their own are tried in tests/integration with the same functions."""


def job(cluster: str, options: dict[str, Any] | None = None) -> Job:
    choice = PluginChoice(cluster, options or {})
    return Job(name="contract", script="true", cluster=choice, resources=Resources(workers=2, nodes=2), folder="/")


@contextmanager
def allocated(made: Job, root: Path) -> Iterator[tuple[Any, AgentInbox, RunDir, dict[str, AgentReady]]]:
    """An allocation whose agents are ready."""
    run = folder.create(root, made)
    launch, cluster = planner.make(made), registry.cluster_of(made)
    inbox: AgentInbox = queue.SimpleQueue()
    with cluster.allocate(launch, run, inbox) as allocation:
        ready: dict[str, AgentReady] = {}
        while len(ready) < launch.nodes:
            node, item = inbox.get(timeout=60)
            if isinstance(item, AgentReady):
                ready[node] = item
        yield allocation, inbox, run, ready


def next_of(inbox: AgentInbox, kind: type) -> tuple[str, Any]:
    while True:
        node, item = inbox.get(timeout=60)
        if isinstance(item, kind):
            return node, item


@pytest.mark.parametrize("name", CLUSTERS)
def test_rendering_is_pure_and_names_every_node(name: str, tmp_path: Path) -> None:
    launch, cluster = planner.make(job(name)), registry.cluster_of(job(name))
    assert dataclasses.is_dataclass(cluster.Options)
    run = RunDir(tmp_path / "not there")
    assert cluster.render(launch, run) == cluster.render(launch, run)
    assert "dtrain agent" in cluster.render(launch, run) or "supervise" in cluster.render(launch, run)
    assert not run.path.exists()


@pytest.mark.parametrize("name", CLUSTERS)
def test_agents_answer_and_end_with_the_allocation(name: str, tmp_path: Path) -> None:
    with allocated(job(name), tmp_path) as (allocation, inbox, _, ready):
        assert set(ready) == set(allocation.channels)
        assert all(item.sees_run for item in ready.values())
        for node, channel in allocation.channels.items():
            channel.send(ReservePorts(7, 3))
            answered, listening = next_of(inbox, PortsReserved)
            assert answered == node
            assert len(set(listening.ports)) == 3
    wait_for(lambda: not running({item.pid for item in ready.values()}), "the agents' end", 20)


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_lost_agent_is_reported_and_can_be_replaced(name: str, tmp_path: Path) -> None:
    with allocated(job(name), tmp_path) as (allocation, inbox, _, ready):
        victim = next(iter(ready))
        os.kill(ready[victim].pid, signal.SIGKILL)
        node, lost = next_of(inbox, NodeLost)
        assert node == victim
        assert lost.reason
        assert allocation.replace(victim)
        replaced, item = next_of(inbox, AgentReady)
        assert replaced not in ready
        assert replaced in allocation.channels
        ready[replaced] = item
        allocation.channels[victim].send(ReservePorts(1, 1)) if victim in allocation.channels else None
    wait_for(lambda: not running({item.pid for item in ready.values()}), "the agents' end", 20)
