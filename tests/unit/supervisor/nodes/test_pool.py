"""Which nodes a run can use, and what is wrong with the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.api.protocol import AgentReady
from dtrain.common.errors import ClusterError
from dtrain.job.job import Job, PluginChoice, Resources
from dtrain.launch import planner
from dtrain.record.folder import create
from dtrain.supervisor.nodes.pool import AgentInfo, NodePool, node_problem


def pool_of(*nodes: tuple[str, str, str]) -> NodePool:
    """Of agents that are ready, by name, address and host."""
    pool = NodePool(heartbeat_seconds=30.0)
    for name, address, host in nodes:
        pool.add(AgentInfo(name, address, host), 0.0)
    return pool


def test_a_loopback_address_is_unreachable_only_from_other_hosts() -> None:
    assert pool_of(("n0", "127.0.1.1", "a"), ("n1", "127.0.1.1", "a")).unreachable() is None
    assert pool_of(("n0", "10.0.0.1", "a"), ("n1", "10.0.0.2", "b")).unreachable() is None
    for order in (1, -1):
        pool = pool_of(*[("n0", "127.0.1.1", "a"), ("n1", "10.0.0.2", "b")][::order])
        found = pool.unreachable()
        assert found is not None
        assert found.host == "a"
        pool.lose("n0", "gone")
        assert pool.unreachable() is None


@pytest.mark.parametrize(
    ("ready", "unreachable", "words"),
    [
        ({}, None, ""),
        ({}, AgentInfo("n0", "127.0.1.1", "a"), "the host name of a stands for 127.0.1.1, which other nodes cannot reach"),
        ({"gpus": 1}, None, "b has 1 GPUs and the run needs 2 on each node"),
        ({"sees_run": False}, None, "the agent on b does not see the run folder"),
    ],
)  # fmt: skip
def test_what_a_node_cannot_do_is_one_message(
    tmp_path: Path, ready: dict[str, int], unreachable: AgentInfo | None, words: str
) -> None:
    resources = Resources(4, 2, device="gpu")
    job = Job("a-run", script="true", folder=str(tmp_path), strategy=PluginChoice("script"), resources=resources)
    told = {"host": "b", "address": "10.0.0.2", "cpus": 8, "gpus": 2, "pid": 1, "sees_run": True} | ready
    problem = node_problem(planner.make(job), create(tmp_path, job), AgentReady(**told), unreachable)  # type: ignore[arg-type]
    if not words:
        assert problem is None
        return
    assert isinstance(problem, ClusterError)
    assert words in problem.message
    assert problem.hint
