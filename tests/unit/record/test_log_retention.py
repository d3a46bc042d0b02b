"""A log that is too large loses its middle, in whole lines, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from dtrain.cli.live_view import LineReader
from dtrain.record import log_retention

KEEP = 4 << 20


def line(number: int) -> bytes:
    return f"line {number:08d} of a program that writes much\n".encode()


def written(path: Path, first: int, count: int) -> None:
    with open(path, "ab") as log:
        log.write(b"".join(line(number) for number in range(first, first + count)))


def test_a_log_that_is_not_too_large_stays_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    written(log, 0, 1000)
    before = log.read_bytes()
    assert log_retention.shorten(log, KEEP) == 0
    assert log.read_bytes() == before
    assert log_retention.hole(log) == range(0)


def test_the_beginning_and_the_newest_part_stay_in_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    reader = LineReader(log, skip=False)
    written(log, 0, 500_000)
    size = log.stat().st_size
    assert log_retention.shorten(log, KEEP) > size - KEEP
    assert log.stat().st_size == size
    assert log.stat().st_blocks * 512 < KEEP
    lines = reader.new()
    notice = next(number for number, text in enumerate(lines) if text.startswith("["))
    assert lines[:notice] == [line(number).decode().rstrip() for number in range(notice)]
    after = lines[notice + 1 :]
    assert after == [line(number).decode().rstrip() for number in range(500_000 - len(after), 500_000)]
    assert "of this log were removed here: it is beyond logs.keep" in lines[notice]
    assert min(notice, len(after)) > 10_000


def test_a_reader_goes_on_while_the_log_is_shortened_again_and_again(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    reader = LineReader(log, skip=False)
    seen: list[str] = []
    for turn in range(8):
        written(log, turn * 100_000, 100_000)
        seen += reader.new()
        log_retention.shorten(log, KEEP)
    assert seen == [line(number).decode().rstrip() for number in range(800_000)]


def test_who_appends_goes_on_with_the_same_file(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(300_000):
        os.write(descriptor, line(number))
        if number % 50_000 == 0:
            log_retention.shorten(log, KEEP)
    os.close(descriptor)
    assert LineReader(log, skip=False).new()[-1] == line(299_999).decode().rstrip()


def test_one_line_that_never_ends(tmp_path: Path) -> None:
    """A progress bar's: it is shortened and read all the same."""
    log = tmp_path / "rank.log"
    states = [f"{number:9d} steps" for number in range(2_000_000)]
    log.write_text("\r".join(states))
    assert log_retention.shorten(log, KEEP) > 0
    lines = LineReader(log, skip=False).new(rest=True)
    assert lines[-1] == states[-1]
    assert len(lines) < 10
