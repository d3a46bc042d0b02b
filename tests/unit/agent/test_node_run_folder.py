"""The run folder of a node that does not see the real one: what is sent of its files, and what that costs."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.agent import node_run_folder
from dtrain.agent.node_run_folder import NodeRunFolder

RANKS = 16


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_run_folder, "_private_root", lambda: tmp_path)


@pytest.fixture
def folder() -> Iterator[NodeRunFolder]:
    """One in which every rank has written something."""
    folder = node_run_folder.take("a-run")
    grow(folder, "first\n")
    yield folder
    folder.remove()


def grow(folder: NodeRunFolder, text: str) -> None:
    for rank in range(RANKS):
        with open(folder.run.rank_log(rank), "a") as log:
            log.write(text)


def texts(folder: NodeRunFolder) -> list[str]:
    return [base64.b64decode(piece.data).decode() for piece in folder.grown()]


def test_sending_waits_for_no_disk(folder: NodeRunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    assert texts(folder) == ["first\n"] * RANKS
    assert not flushed


def test_the_next_agent_there_sends_what_a_killed_one_had_not(folder: NodeRunFolder) -> None:
    pieces = folder.grown()
    for _ in range(RANKS // 2):
        next(pieces)
    next(pieces)  # sent, but nobody knows: it is sent again
    folder._lock.close()  # as the kernel does when the agent is killed
    successor = node_run_folder.take("a-run")
    assert successor.run.path == folder.run.path
    assert texts(successor) == ["first\n"] * (RANKS // 2)
    grow(successor, "second\n")
    assert texts(successor) == ["second\n"] * RANKS
    successor.remove()
