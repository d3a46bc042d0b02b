"""What counts against a node, for how long, and how it is forgotten."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.record import node_history
from dtrain.record.folder import RunDir
from dtrain.record.node_history import NodeFailure

NOW = 1000.0


def failed(
    kind: FailureKind, step: int = 0, at: float = NOW, hours: float = 1.0, node: str = "n1"
) -> NodeFailure | None:
    failure = Failure(kind, "gone", rank=0, node=node, step=step, code=-9, time=at)
    return node_history.counted(failure, 1, RunDir(Path("/runs/a")), "local", node, failure.time + hours * 3600)


def kept(runs: Path, *failures: NodeFailure | None) -> None:
    for failure in failures:
        assert failure is not None
        node_history.add(runs, failure)


def avoided(runs: Path, now: float = NOW) -> list[str]:
    return list(node_history.avoided(node_history.read(runs, now), "local"))


@pytest.mark.parametrize(
    "kind",
    [FailureKind.BUG, FailureKind.TRANSIENT, FailureKind.OUT_OF_MEMORY, FailureKind.SETUP, FailureKind.PREEMPTED, FailureKind.CASCADE],
)  # fmt: skip
def test_what_is_the_programs_or_the_clusters_does_not_count_against_a_node(kind: FailureKind) -> None:
    assert failed(kind) is None


def test_two_different_failures_have_a_node_avoided_and_one_does_not(tmp_path: Path) -> None:
    kept(tmp_path, failed(FailureKind.KILLED, 1))
    assert avoided(tmp_path) == []
    kept(tmp_path, failed(FailureKind.KILLED, 2))
    assert avoided(tmp_path) == ["n1"]
    assert list(node_history.avoided(node_history.read(tmp_path, NOW), "slurm")) == [], "of another cluster"


def test_what_strikes_at_the_same_step_again_counts_once_and_lost_nodes_each_time(tmp_path: Path) -> None:
    kept(tmp_path, failed(FailureKind.CRASH, 5), failed(FailureKind.CRASH, 5))
    assert avoided(tmp_path) == []
    kept(tmp_path, *(failed(FailureKind.NODE_LOST, 5, node="n2") for _ in range(2)))
    assert avoided(tmp_path) == ["n2"]


def test_a_node_is_used_again_when_all_but_one_of_its_failures_have_expired(tmp_path: Path) -> None:
    kept(tmp_path, failed(FailureKind.KILLED, 1, NOW), failed(FailureKind.KILLED, 2, NOW + 600))
    (record,) = node_history.read(tmp_path, NOW + 600)
    assert record.avoided_until == NOW + 3600
    assert avoided(tmp_path, NOW + 3599) == ["n1"]
    assert avoided(tmp_path, NOW + 3601) == []
    assert node_history.read(tmp_path, NOW + 4201) == []


def test_forgetting_ends_what_was_and_not_what_comes(tmp_path: Path) -> None:
    kept(tmp_path, failed(FailureKind.KILLED, 1), failed(FailureKind.KILLED, 2), failed(FailureKind.HANG, 3, node="n2"))
    node_history.forget(tmp_path, "n1", NOW)
    assert [one.node for one in node_history.read(tmp_path, NOW)] == ["n2"]
    kept(tmp_path, failed(FailureKind.KILLED, 3), failed(FailureKind.KILLED, 4))
    assert avoided(tmp_path) == ["n1"]


def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    kept(tmp_path, failed(FailureKind.KILLED, 1))
    with node_history.file_in(tmp_path).open("a") as file:
        file.write('half a li\n{"of": "another version"}\n')
    kept(tmp_path, failed(FailureKind.KILLED, 2))
    assert avoided(tmp_path) == ["n1"]


def test_several_supervisors_write_at_once(tmp_path: Path) -> None:
    children = []
    for child in range(4):
        if (pid := os.fork()) == 0:
            for step in range(50):
                node_history.add(tmp_path, failed(FailureKind.KILLED, step, node=f"n{child}"))  # type: ignore[arg-type]
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    assert [len(one.failures) for one in node_history.read(tmp_path, NOW)] == [50] * 4
    assert node_history.read(tmp_path, time.time()) == [], "long ago"
