"""Lines of a log as they are shown while it grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.cli.live_view import LineReader


class Log:
    """A log that grows, and the time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0.0
        self.reader = LineReader(path, skip=False, clock=lambda: self.now)

    def write(self, text: str, *, rest: bool = False) -> list[str]:
        """What is new after this was written, a second later."""
        with open(self.path, "a", newline="") as file:
            file.write(text)
        self.now += 1.0
        return self.reader.new(rest=rest)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "rank-00000.log")


def test_whole_lines_are_read_once_and_the_rest_at_the_end(log: Log) -> None:
    assert log.write("one\ntw") == ["one"]
    assert log.write("o\n\nthree") == ["two", ""]
    assert log.write("", rest=True) == ["three"]


def test_of_a_progress_bar_the_newest_state_is_read_and_its_end_once(log: Log) -> None:
    assert log.write("\r 0%|    | 0/4") == [" 0%|    | 0/4"]
    assert log.write("\r25%|#   | 1/4\r50%|##  | 2/4") == ["50%|##  | 2/4"]
    assert log.write("") == []
    assert log.write("\r75%|### | 3/4") == ["75%|### | 3/4"]
    assert log.write("\r100%|####| 4/4") == ["100%|####| 4/4"]
    assert log.write("\nafter it\n") == ["after it"]
    assert log.write("\r 0%\r100%\nnext\n") == ["100%", "next"]


def test_a_progress_bar_is_not_read_more_often_than_a_few_times_a_second(log: Log) -> None:
    assert log.write("\r 0%") == [" 0%"]
    log.now -= 0.9
    assert log.write("\r10%") == []
    log.now -= 0.9
    assert log.write("\r11%") == []
    assert log.write("\r12%") == ["12%"]


def test_lines_of_windows_are_lines(log: Log) -> None:
    assert log.write("one\r\ntwo\r\n") == ["one", "two"]
