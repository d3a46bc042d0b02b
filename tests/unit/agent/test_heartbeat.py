"""Heartbeats go on while the agent's loop is held up."""

from __future__ import annotations

import queue

from dtrain.agent.heartbeat import Pulse
from dtrain.api.protocol import Heartbeat, WorkerLiveness


def test_the_newest_heartbeat_is_repeated_while_nobody_renews_it() -> None:
    sent: queue.SimpleQueue[Heartbeat] = queue.SimpleQueue()
    pulse = Pulse(sent.put, 0.01)
    pulse.start()
    newest = Heartbeat(3, {"0": WorkerLiveness(7, 0.0, 0.0)})
    pulse.renew(newest)
    beats = [sent.get(timeout=10) for _ in range(5)]
    assert beats[-3:] == [newest] * 3
    pulse.stop()


def test_a_new_heartbeat_is_sent_at_once() -> None:
    sent: queue.SimpleQueue[Heartbeat] = queue.SimpleQueue()
    pulse = Pulse(sent.put, 10_000.0)
    pulse.start()
    for attempt in (1, 2):
        pulse.renew(Heartbeat(attempt))
        assert sent.get(timeout=10) == Heartbeat(attempt)
    pulse.stop()
