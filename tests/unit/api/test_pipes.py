"""What comes up the pipe of some agents: events, what is none of ours, and the end of the agents."""

from __future__ import annotations

import os
import queue
import shlex
from typing import Any

import pytest

from dtrain.api.cluster import NodeLost
from dtrain.api.pipes import PipedAgents
from dtrain.api.protocol import Heartbeat, encode


def heard(*lines: str, then: str) -> list[tuple[str, Any]]:
    """What is in the inbox of two nodes whose agents print these lines, up to the last node that is lost."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    printed = " ".join(shlex.quote(line) for line in lines)
    agents = PipedAgents(["n0", "n1"], ["sh", "-c", f"printf '%s\\n' {printed}; {then}"], dict(os.environ), inbox)
    items: list[tuple[str, Any]] = []
    while sum(isinstance(item, NodeLost) for _, item in items) < 2:
        items.append(inbox.get(timeout=20))
    agents.end()
    return items


@pytest.mark.parametrize(
    "unknown",
    ['{"to":"n0","kind":"Heartbeat","attempt":1}', '{"to":"n0","type":"heartbeat"}', '{"to":"n0","type":"shiny"}'],
)
def test_a_message_of_another_version_loses_its_nodes_with_the_reason(unknown: str) -> None:
    items = heard(encode(Heartbeat(1), "n1").decode().strip(), unknown, then="exec sleep 60")
    assert items[0] == ("n1", Heartbeat(1))
    assert [node for node, _ in items[1:]] == ["n0", "n1"]
    for _, lost in items[1:]:
        assert lost.reason.startswith("its agent is of another version of dtrain: ")


def test_what_a_login_shell_prints_is_passed_over_and_an_end_has_its_code() -> None:
    items = heard("Welcome to the cluster", "[1, 2]", encode(Heartbeat(2), "n0").decode().strip(), then="exit 3")
    assert items == [("n0", Heartbeat(2)), ("n0", NodeLost("its agent ended with code 3")), ("n1", NodeLost("its agent ended with code 3"))]  # fmt: skip
