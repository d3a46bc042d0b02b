"""The agent's end of a worker's control channel, whatever comes out of the worker."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.agent.worker_pipe import BadReport, WorkerPipe
from dtrain.api.protocol import TAG, LeaveAt, ProposeStop
from dtrain.api.reports import Report, StopProposal, WorkerFailed
from dtrain.common.framing import LENGTH, MOST_BYTES, framed
from dtrain.common.message import tagged
from dtrain.worker.control_channel import ControlChannel

Ends = tuple[WorkerPipe, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    with opened() as both:
        yield both


@contextmanager
def opened() -> Iterator[Ends]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield WorkerPipe(ours), theirs


def frame_of(report: Report) -> bytes:
    return framed(json.dumps(tagged(report, TAG)).encode())


def test_a_report_that_is_cut_short_holds_up_nothing_and_is_left_out(ends: Ends) -> None:
    """A worker is killed in the middle of it while a child of it keeps the socket open."""
    pipe, worker = ends
    child = os.dup(worker.fileno())
    worker.sendall(frame_of(StopProposal(3)) + frame_of(WorkerFailed("bug", "x" * 100_000))[:40_000])
    worker.close()
    assert [report for _, report in pipe.reports()] == [StopProposal(3)]
    assert pipe.reports() == []
    assert not pipe.closed
    os.close(child)
    assert pipe.reports() == []
    assert pipe.closed


@pytest.mark.parametrize(
    "bad", [LENGTH.pack(MOST_BYTES + 1), framed(b"no json"), framed(b"[1]"), framed(b'{"type": "nothing"}'),
            framed(b'{"type": "stop_proposal"}'), framed(b'{"type": "leave_at", "attempt": 1, "step": 2}'), framed(b"[" * 100_000)],
)  # fmt: skip
def test_what_is_no_report_closes_this_channel_alone(bad: bytes, ends: Ends) -> None:
    pipe, worker = ends
    worker.sendall(frame_of(StopProposal(3)) + bad)
    with pytest.raises(BadReport, match="no report") as raised:
        pipe.reports()
    assert [report for _, report in raised.value.before] == [StopProposal(3)]
    assert pipe.closed
    assert pipe.reports() == []


@given(st.binary(max_size=400))
def test_any_bytes_are_reports_or_refused(data: bytes) -> None:
    with opened() as (pipe, worker):
        worker.sendall(data)
        worker.close()
        try:
            assert pipe.reports() == []
        except BadReport:
            assert pipe.closed


def test_a_worker_that_does_not_read_holds_up_nothing(ends: Ends) -> None:
    pipe, worker = ends
    for step in range(20_000):
        pipe.send(LeaveAt(1, step))
    assert not pipe.flush()
    channel = ControlChannel(worker)
    heard = 0
    while not pipe.flush() or heard < 20_000:
        assert channel._receive() == LeaveAt(1, heard)
        heard += 1
    pipe.close()


def test_a_worker_proposes_the_step_after_the_one_under_way(ends: Ends) -> None:
    pipe, worker = ends
    channel = ControlChannel(worker)
    channel.listen()
    assert channel.may_begin(4)
    pipe.send(ProposeStop(1))
    found: list[Report] = []
    while not found:
        found = [report for _, report in pipe.reports()]
    assert found == [StopProposal(5)]
    pipe.send(LeaveAt(1, 5))
    assert not channel.may_begin(5)
    pipe.close()
