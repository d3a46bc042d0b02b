"""Lines of several ranks, folded."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.cli.logs import chosen, print_logs
from dtrain.run.folder import RunDir


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
    print_logs(run, chosen([], None, "warn|loss", fold=True), follow=False)
    assert capsys.readouterr().out.splitlines() == [
        "ranks 0 to 2 | warn",
        "ranks 0, 2 | loss 1",
        "ranks 0, 2 | warn",
        "rank 1 | loss 2",
    ]


def test_without_it_every_line_has_its_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_logs(written(tmp_path, "a\n", "a\n"), chosen([1], None, "^a$", fold=False), follow=False)
    assert capsys.readouterr().out == "rank 1 | a\n"
