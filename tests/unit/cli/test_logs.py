"""Lines of several ranks, folded."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from dtrain.cli.logs import chosen, moment, print_logs
from dtrain.common.errors import UsageError
from dtrain.record.folder import RunDir
from dtrain.record.log_times import EVERY_SECONDS, LogTimes


def written(folder: Path, *logs: str) -> RunDir:
    run = RunDir(folder)
    run.create_folders()
    for rank, text in enumerate(logs):
        run.rank_log(rank).write_text(f"--- dtrain: attempt 1, rank {rank}, from step 0 ---\n{text}")
    return run


def test_lines_that_several_ranks_wrote_are_shown_once_and_as_often_as_each_wrote_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path, "warn\nloss 1\nwarn\n", "warn\nloss 2\n", "loss 1\nwarn\nwarn\n")
    print_logs(run, chosen([], None, "warn|loss", None, fold=True), follow=False)
    assert capsys.readouterr().out.splitlines() == [
        "ranks 0 to 2 | warn",
        "ranks 0, 2 | loss 1",
        "ranks 0, 2 | warn",
        "rank 1 | loss 2",
    ]


def test_without_it_every_line_has_its_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_logs(written(tmp_path, "a\n", "a\n"), chosen([1], None, "^a$", None, fold=False), follow=False)
    assert capsys.readouterr().out == "rank 1 | a\n"


def test_only_what_was_written_since_is_shown_from_the_beginning_of_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = written(tmp_path, "")
    log, now = run.rank_log(0), time.time()
    times = LogTimes(log)
    for ago, text in ((100, "old\n"), (90, "half a "), (89, "line\n"), (50, "new\n"), (10, "newest\n")):
        times.note(log.stat().st_size, now - ago)
        with open(log, "a") as file:
            file.write(text)
    assert EVERY_SECONDS == 5.0, "the entry of 89 seconds ago was left out"
    for since, lines in (
        ("40s", ["new", "newest"]),
        ("1d", None),
        ("8s", ["newest"]),
        ("85s", ["half a line", "new", "newest"]),
    ):
        print_logs(run, chosen([], None, None, since, fold=False), follow=False)
        shown = [line.removeprefix("rank 0 | ") for line in capsys.readouterr().out.splitlines()]
        assert shown == lines if lines else shown[-1] == "newest" and len(shown) == 5, (since, shown)


def test_a_log_without_times_is_not_shown_as_if_it_were_new(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a copy from remote storage, or of an older run"):
        print_logs(written(tmp_path, "a\n"), chosen([], None, None, "10m", fold=False), follow=False)


def test_times_as_people_write_them() -> None:
    now = datetime.now()
    assert moment("2h") == pytest.approx(time.time() - 7200, abs=5)
    assert moment("2026-11-24 03:00") == datetime(2026, 11, 24, 3).timestamp()
    later = (now + timedelta(minutes=2)).strftime("%H:%M")
    assert 0 < time.time() - moment(later) < 86400, "that was yesterday"
    with pytest.raises(UsageError, match="--since lately: not a time"):
        moment("lately")
