"""What a person types, as far as no run is needed to answer it."""

from __future__ import annotations

from pathlib import Path

import pytest
from live import PROGRAMS, dtrain

from dtrain.cli.app import app
from dtrain.cli.group import MEANT
from dtrain.cli.logs import chosen, print_logs
from dtrain.common.errors import UsageError
from dtrain.control import overrides
from dtrain.record.folder import RunDir

COMMANDS = {command.callback.__name__ for command in app.registered_commands if command.callback}


@pytest.mark.parametrize(
    "typed", ["list", "ls", "kill", "cancel", "delete", "watch", "start", "train", "version", "help"]
)
def test_a_command_of_another_program_names_the_one_that_does_it(typed: str) -> None:
    said = dtrain(typed, check=2).stderr
    assert said.startswith(f"dtrain: there is no command '{typed}': dtrain {MEANT[typed][0]} ")
    assert said.count("\n") == 1


def test_the_commands_that_are_named_exist() -> None:
    named = {command.split()[0] for command, _ in MEANT.values()}
    assert named - {"--help", "--version"} <= COMMANDS
    assert not set(MEANT) & COMMANDS


def test_a_mistyped_command_names_the_nearest() -> None:
    assert "Did you mean 'status'" in dtrain("staus", check=2).stderr


def test_options_for_the_seed_and_the_environment_are_keys_of_the_recipe() -> None:
    assert overrides.of_options(seed=3, env=["A=1", "B=x=y", "C="]) == [
        (("train", "seed"), 3, "--seed 3"),
        (("env", "A"), "1", "--env A"),
        (("env", "B"), "x=y", "--env B"),
        (("env", "C"), "", "--env C"),
    ]
    with pytest.raises(UsageError, match="NAME=VALUE"):
        overrides.of_options(env=["A"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "r.yaml", "-q", "-v"], "Give one of them"),
        (["stop", "a", "--all"], "Use one of them"),
        (["rm", ""], "an empty text names no run"),
        (["stop", ""], "an empty text names no run"),
        (["stop"], "there are no runs in"),
        (["status"], "there are no runs in"),
        (["logs"], "there are no runs in"),
        (["attach"], "there are no runs in"),
        (["report"], "there are no runs in"),
        (["run", str(PROGRAMS / "tiny.yaml"), "--env", "A"], "NAME=VALUE"),
        (["run", str(PROGRAMS / "tiny.yaml"), "--seed", "-1"], "--seed -1: train.seed: "),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else None,
)
def test_what_cannot_be_meant_is_one_clear_message(arguments: list[str], words: str, tmp_path: Path) -> None:
    assert words in dtrain(*arguments, check=2, DTRAIN_RUNS=str(tmp_path)).stderr


def test_of_each_rank_only_the_last_lines_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    run.create_folders()
    for rank in (0, 1):
        run.rank_log(rank).write_text("".join(f"line {number} of {rank}\n" for number in range(9)))
    print_logs(run, chosen([], None, "[1357] of", None, fold=False, last=2), follow=False)
    assert capsys.readouterr().out.splitlines() == [
        "rank 0 | line 5 of 0",
        "rank 0 | line 7 of 0",
        "rank 1 | line 5 of 1",
        "rank 1 | line 7 of 1",
    ]
