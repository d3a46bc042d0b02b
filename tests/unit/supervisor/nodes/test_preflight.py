"""What is wrong with a node before its first step is said with its name, and ends the run if no attempt can do without it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from scripted import ScriptedCluster, Supervised, script_job

from dtrain.api.protocol import CheckNode, CheckPeers, NodeAnswered, PeersChecked
from dtrain.common.errors import ClusterError
from dtrain.record import events


def answer(**changes: Any) -> NodeAnswered:
    fields = {
        "clock": time.time(), "versions": {"torch": "2.13", "python": "3.11.7"}, "port": 4000, "disk_free": 10**12,
        "shared_memory_free": 10**10,
    }  # fmt: skip
    return NodeAnswered(**fields | changes)  # type: ignore[arg-type]


def begun(path: Path, **resources: Any) -> Supervised:
    """Two nodes that train and were asked."""
    job = script_job(path)
    job = dataclasses.replace(job, resources=dataclasses.replace(job.resources, **resources))
    supervised = Supervised(path, ScriptedCluster(spare=1), job)
    supervised.wait_event(events.WorkersStarted, 2)
    return supervised


def questions(supervised: Supervised, kind: type) -> list[Any]:
    return [one for agent in supervised.cluster.agents.values() for one in agent.told if isinstance(one, kind)]


def assert_ends_with(supervised: Supervised, *words: str) -> None:
    with pytest.raises(ClusterError) as caught:
        supervised.finish()
    assert all(word in str(caught.value) for word in words), caught.value


def test_nodes_that_are_well_are_asked_once_and_try_each_other(tmp_path: Path) -> None:
    supervised = begun(tmp_path)
    agents = supervised.cluster.agents
    assert len(questions(supervised, CheckNode)) == 2
    agents["node0"].say(answer())
    agents["node1"].say(answer(port=4001))
    supervised.wait(lambda: len(questions(supervised, CheckPeers)) == 2, "the question for peers")
    tried = [next(one for one in agents[name].told if isinstance(one, CheckPeers)).peers for name in ("node0", "node1")]
    assert tried == [{"node1": ("10.0.0.1", 4001)}, {"node0": ("10.0.0.1", 4000)}]
    assert [event.node for event in supervised.events(events.NodeChecked)] == ["node0", "node1"]
    assert not supervised.events(events.UserWarned)
    agents["node1"].exit(1, -9)
    supervised.wait_event(events.WorkersStarted, 4)
    assert len(questions(supervised, CheckNode)) == 2, "a restart costs nothing more"


def test_versions_that_differ_end_the_run_with_both_names(tmp_path: Path) -> None:
    supervised = begun(tmp_path)
    supervised.cluster.agents["node0"].say(answer())
    supervised.cluster.agents["node1"].say(answer(versions={"torch": "2.12", "python": "3.11.7"}))
    assert_ends_with(supervised, "node1 has torch 2.12, and node0 has 2.13", "resources.check_nodes: false")


def test_a_run_folder_that_a_node_cannot_write_to_ends_the_run(tmp_path: Path) -> None:
    supervised = begun(tmp_path)
    supervised.cluster.agents["node1"].say(answer(problem="Read-only file system"))
    assert_ends_with(supervised, "node1 cannot write to the run folder", "Read-only file system")


def test_a_node_that_another_one_cannot_reach_ends_the_run(tmp_path: Path) -> None:
    supervised = begun(tmp_path)
    supervised.cluster.agents["node1"].say(PeersChecked({"node0": "10.0.0.1: timed out"}))
    assert_ends_with(supervised, "node1 cannot reach node0 at 10.0.0.1: timed out")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clock": time.time() + 100}, "the clock of node1 is off by"),
        ({"clock": time.time() - 100}, "the clock of node1 is off by"),
        ({"disk_free": 10**8}, "node1 has 0.10 GB free in"),
        ({"shared_memory_free": 64 * 10**6}, "node1 has 64 MB free in /dev/shm"),
    ],
    ids=["ahead", "behind", "disk", "shared-memory"],
)
def test_the_rest_is_a_warning_that_names_the_node(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    supervised = begun(tmp_path)
    supervised.cluster.agents["node1"].say(answer(**changes))
    assert words in supervised.wait_event(events.UserWarned).text
    assert supervised.error is None


def test_a_recipe_can_do_without(tmp_path: Path) -> None:
    supervised = begun(tmp_path, check_nodes=False)
    assert questions(supervised, CheckNode) == []
