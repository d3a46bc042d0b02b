"""What user code says cannot command the terminal of who reads it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from dtrain.common.printable import PrintableStream, printable
from dtrain.record.event_log import EventLog, read
from dtrain.record.events import Event, UserWarned

HOSTILE = [
    "\x1b]0;title\x07", "\x1b]52;c;cm0gLXJm\x07", "\x1b[2J\x1b[H", "\x1bc", "\x9b2J", "\x1b[6n", "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "\x1bP+q544e\x1b\\", "\x0e", "\x7f",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_command_is_left(text: str) -> None:
    for found in (printable(text), printable(text, colours=True)):
        assert not set(found) & {"\x1b", "\x07", "\x9b", "\x0e", "\x7f"}
    assert "title" in printable(HOSTILE[0]), "it is shown, not hidden"


def test_ordinary_text_is_as_it_was() -> None:
    text = "loss 0.5\r\tстрока\n 50%|███  |\b"
    assert printable(text) == text
    assert printable("\x1b[31mred\x1b[0m", colours=True) == "\x1b[31mred\x1b[0m"


def test_a_stream_writes_the_same() -> None:
    buffer = io.BytesIO()
    stream = PrintableStream(buffer, "utf-8", write_through=True)
    print("\x1b[31mred\x1b[0m \x1b[2J", file=stream)
    assert buffer.getvalue() == b"\x1b[31mred\x1b[0m \\x1b[2J\n"


def test_an_event_log_holds_none_and_none_is_read_of_one_from_elsewhere(tmp_path: Path) -> None:
    heard: list[Event] = []
    log = EventLog(tmp_path / "events.jsonl", heard.append)
    log.add(UserWarned(text="\x1b[2J in a warning"))
    log.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        print(
            json.dumps({"time": 1.0, "event": "user_warned", "text": "\x1b]0;x\x07"}, separators=(",", ":")), file=file
        )
    texts = [event.text for event in (*heard, *read(tmp_path / "events.jsonl")) if isinstance(event, UserWarned)]
    assert texts == ["\\x1b[2J in a warning", "\\x1b[2J in a warning", "\\x1b]0;x\\x07"]


def test_an_unfinished_line_of_a_supervisor_that_was_killed_swallows_nothing(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"time":1.0,"event":"user_warned","text":"cut sh')
    log = EventLog(tmp_path / "events.jsonl")
    log.add(UserWarned(text="whole"))
    log.close()
    assert [event.text for event in read(tmp_path / "events.jsonl") if isinstance(event, UserWarned)] == ["whole"]
