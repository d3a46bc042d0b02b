"""What a node finds out about itself before its first step."""

from __future__ import annotations

import os
import queue
import socket
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from dtrain.agent import preflight
from dtrain.agent.preflight import Preflight
from dtrain.api.protocol import CheckNode, CheckPeers, NodeAnswered, PeersChecked
from dtrain.common import environment
from dtrain.record.folder import RunDir


def test_versions_are_those_that_python_would_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = preflight.versions(["torch", "dtrain", "no_such_package"])
    assert found == {"python": ".".join(map(str, sys.version_info[:3])), "torch": version("torch"), "dtrain": version("dtrain")}  # fmt: skip
    for name in ("torch_geometric-7.0.dist-info", "torch-9.9.dist-info", "tensorflow_cpu-3.1.dist-info"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "missing"), *sys.path])
    found = preflight.versions(["torch", "tensorflow"])
    assert (found["torch"], found["tensorflow"]) == ("9.9", "3.1")


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert preflight.folder_problem(tmp_path, "node1") == ""
    assert list(tmp_path.iterdir()) == []
    assert preflight.folder_problem(tmp_path / "gone", "node1") == "No such file or directory"
    assert preflight.free(tmp_path / "gone") is None


def test_a_node_answers_others_and_says_which_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.ADDRESS, "127.0.0.1")
    answers: queue.SimpleQueue[NodeAnswered | PeersChecked] = queue.SimpleQueue()
    node = Preflight(RunDir(tmp_path), "node0", answers.put)
    before = time.time()
    node.begin(CheckNode(("dtrain",), folder=True))
    first = answers.get(timeout=10)
    assert isinstance(first, NodeAnswered)
    assert first.problem == "" and before <= first.clock <= time.time()
    assert first.disk_free == pytest.approx(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize, rel=0.1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        peers = {"there": ("127.0.0.1", first.port), "not": ("127.0.0.1", closed.getsockname()[1])}
        node.begin(CheckPeers(peers))
        assert answers.get(timeout=10) == PeersChecked({"not": "127.0.0.1: Connection refused"})
    node.end()
