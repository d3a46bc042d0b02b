"""The event log keeps every line, whatever the disk does, and is read as far as it is whole."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import small_disk

from dtrain.common.files import Appender
from dtrain.common.message import KINDS
from dtrain.record.event_log import EventLog, Reader, read
from dtrain.record.events import AttemptStarted, Event, NodeLost, UnknownEvent, UserWarned, from_log
from dtrain.record.status import RunState, fold
from dtrain.show import render
from dtrain.supervisor.beside.log_trouble import LogTrouble


def test_what_does_not_fit_on_a_full_disk_is_written_as_soon_as_it_does(tmp_path: Path) -> None:
    with small_disk(tmp_path, "64k"):
        ballast = tmp_path / "ballast"
        ballast.write_bytes(b"x" * 40_000)
        file = Appender(tmp_path / "log")
        lines = [f"line {number} {'.' * 1000}\n".encode() for number in range(40)]
        for line in lines:
            file.append(line)
        assert file.pending
        ballast.unlink()
        file.close()
        assert (tmp_path / "log").read_bytes() == b"".join(lines)


def test_the_log_says_when_it_cannot_be_written_and_when_it_can_again(tmp_path: Path) -> None:
    with small_disk(tmp_path, "40k"):
        ballast = tmp_path / "ballast"
        ballast.write_bytes(b"x" * 30_000)
        log = EventLog(tmp_path / "events.jsonl")
        trouble = LogTrouble(log)
        for number in range(20):
            if number == 19:
                ballast.unlink()
            log.add(UserWarned(text="x" * 1000))
            trouble.look()
            trouble.look()
        kinds = [event for event in read(log.path) if not isinstance(event, UserWarned)]
        state = RunState()
        assert [render.line(event, state) for event in kinds] == [
            f"WARNING: cannot write {log.path}: No space left on device; events and logs are kept here meanwhile",
            "the event log works again",
        ]
        assert len(read(log.path)) == 22


def test_a_reader_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = Reader(path)
    assert list(reader.new()) == []
    log = EventLog(path)
    log.add(NodeLost(node="x", reason="y"))
    assert [event.kind_name for event in reader.new()] == ["node_lost"]
    with open(path, "ab") as file:
        file.write(b'{"time": 1, "event": "cut')
    assert list(reader.new()) == []
    with open(path, "ab") as file:
        file.write(b' in two"}\nno json\n')
    assert [event.to_dict() for event in reader.new()] == [{"time": 1, "event": "cut in two"}]
    assert len(read(path)) == 2


def test_the_state_is_a_fold_over_the_event_log() -> None:
    log = [
        {
            "time": 1.0,
            "event": "run_started",
            "run": "r",
            "target": "t",
            "strategy": "ddp",
            "cluster": "local",
            "workers": 2,
            "nodes": 1,
        },
        {
            "time": 2.0,
            "event": "attempt_started",
            "attempt": 1,
            "step": 0,
            "workers": 2,
            "nodes": ["node0"],
            "checkpoint": None,
        },
        {"time": 3.0, "event": "workers_started", "attempt": 1, "node": "node0", "pids": {"0": 10, "1": 11}},
        {"time": 4.0, "event": "training_started", "step": 0, "total_steps": 50, "samples": 9},
        {"time": 5.0, "event": "metrics", "step": 20, "values": {"loss": 0.5}, "samples_per_second": 9.0},
        {
            "time": 6.0,
            "event": "failure_occurred",
            "kind": "killed",
            "rank": 1,
            "step": 21,
            "message": "killed by SIGKILL",
            "where": "",
            "node": "node0",
        },
        {"time": 6.0, "event": "decision_made", "retry": True, "reason": "restart 1 of 5", "delay_seconds": 0.0},
    ]
    history = [from_log(fields) for fields in log]
    state = fold(history)
    assert (state.step, state.total_steps, state.restarts, state.outcome) == (21, 50, 1, "recovering")
    lines = [render.line(event, state) for event in history]
    assert "FAILURE killed: rank 1 killed by SIGKILL at step 21" in lines
    assert "starting again: restart 1 of 5" in lines


@given(st.floats(0, 1e7))
def test_durations_read_well(value: float) -> None:
    text = render.seconds(value)
    assert text.split()[1] in ("s", "min", "h", "d")
    assert len(text) <= 12


def sample(hint: Any) -> Any:
    """A value of a type."""
    origin, parts = typing.get_origin(hint), [part for part in typing.get_args(hint) if part is not ...]
    if origin is dict:
        return {sample(parts[0]): sample(parts[1])}
    if origin is tuple:
        return tuple(map(sample, parts))
    if parts:
        return sample(parts[0])
    if dataclasses.is_dataclass(hint):
        return hint(**{name: sample(part) for name, part in typing.get_type_hints(hint).items()})  # type: ignore[operator]
    return {int: 3, str: "text", float: 0.5, bool: True}[hint]


@pytest.mark.parametrize(
    "kind",
    [kind for kind in dict.fromkeys(KINDS.values()) if issubclass(kind, Event) and kind is not UnknownEvent],
    ids=lambda kind: kind.kind_name,
)
def test_every_event_comes_back_from_the_log_as_it_was_added(kind: type[Event], tmp_path: Path) -> None:
    names = {one.name for one in dataclasses.fields(kind)}
    fields = {name: sample(hint) for name, hint in typing.get_type_hints(kind).items() if name in names}
    fields |= {"format": 2} if "format" in fields else {}
    event = kind(**fields)
    log = EventLog(tmp_path / "events.jsonl")
    log.add(event)
    (back,) = read(tmp_path / "events.jsonl")
    assert dataclasses.replace(back, time=0.0) == dataclasses.replace(event, time=0.0)


def test_fields_of_a_newer_version_are_dropped_and_a_lacking_one_makes_the_event_unknown() -> None:
    fields = {"time": 1.0, "event": "node_lost", "node": "a", "reason": "b"}
    assert from_log(fields | {"shiny": 1}) == NodeLost(time=1.0, node="a", reason="b")
    assert isinstance(from_log({"time": 1.0, "event": "node_lost", "node": "a"}), UnknownEvent)
    assert not isinstance(from_log({"event": "attempt_started", "attempt": 1}), AttemptStarted)
