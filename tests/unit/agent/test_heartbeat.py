"""Heartbeats go on while the agent's loop is held up, and say how old their signs are."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from dtrain.agent import heartbeat
from dtrain.agent.heartbeat import Pulse
from dtrain.api.protocol import Heartbeat, WorkerLiveness


def beating(
    seconds: float, abandoned: Callable[[], None] = lambda: None
) -> tuple[Pulse, queue.SimpleQueue[Heartbeat], int]:
    """A pulse, what it sends, and the writing end of its commands."""
    sent: queue.SimpleQueue[Heartbeat] = queue.SimpleQueue()
    commands, supervisor = os.pipe()
    pulse = Pulse(sent.put, seconds, commands, abandoned)
    pulse.start()
    return pulse, sent, supervisor


def test_the_newest_heartbeat_is_repeated_with_its_age_while_it_is_not_renewed() -> None:
    pulse, sent, supervisor = beating(0.02)
    newest = Heartbeat(3, {"0": WorkerLiveness(7, 0.0, 0.0)})
    pulse.renew(newest)
    beats = [sent.get(timeout=10) for _ in range(6)]
    assert [replace(beat, age_seconds=0.0) for beat in beats[-3:]] == [newest] * 3
    ages = [beat.age_seconds for beat in beats[-3:]]
    assert ages == sorted(ages)
    assert ages[-1] > 0.05
    pulse.stop()
    os.close(supervisor)


def test_a_new_heartbeat_is_sent_at_once() -> None:
    pulse, sent, supervisor = beating(10_000.0)
    for attempt in (1, 2):
        pulse.renew(Heartbeat(attempt))
        assert sent.get(timeout=10) == Heartbeat(attempt)
    pulse.stop()
    os.close(supervisor)


def test_old_signs_are_silence() -> None:
    sign = WorkerLiveness(7, idle_seconds=1.0, stopped_seconds=0.0, quiet_seconds=2.0)
    assert sign.aged(30.0) == WorkerLiveness(7, idle_seconds=31.0, stopped_seconds=0.0, quiet_seconds=32.0)


def test_a_loop_that_is_held_up_when_the_supervisor_is_gone_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HELD_UP_SECONDS", 0.1)
    abandoned = threading.Event()
    pulse, _, supervisor = beating(0.02, abandoned.set)
    assert not abandoned.wait(0.5)
    os.close(supervisor)
    assert abandoned.wait(10)
    pulse.stop()
