"""What commands print with --json fits the schema that `dtrain schema --of` prints; what is removed is asked for in words a program can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import synthetic_runs
from live import PROGRAMS, dtrain

from dtrain.cli.json_schemas import printed, schema_of


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs that have ended, and one that has no end."""
    job = synthetic_runs.tiny(tmp_path)
    synthetic_runs.made(tmp_path, job, 100, name="good")
    synthetic_runs.made(tmp_path, job, 50, name="bad", exit_code=1, failure="boom")
    synthetic_runs.made(tmp_path, job, 20, name="lost", exit_code=None)
    return tmp_path


def said(*words: str) -> Any:
    """What a command prints, which fits its schema."""
    found = json.loads(dtrain(*words, "--json").stdout)
    jsonschema.validate(found, schema_of(words[0]))
    return found


def test_tables_fit_their_schemas(runs: Path) -> None:
    where = ("--runs", str(runs))
    assert {row["run"]: row["state"] for row in said("ps", *where)} == {"good": "done", "bad": "failed", "lost": "lost"}
    for name in ("good", "bad", "lost"):
        assert said("status", name, *where)["run"] == name
    assert said("nodes", *where) == []
    assert said("plan", str(PROGRAMS / "tiny.yaml"))["workers"] == 2
    assert said("plugins")
    assert said("warm") is not None


def test_a_program_removes_without_a_question_and_is_told_what(runs: Path) -> None:
    where = ("--runs", str(runs))
    (planned,) = said("rm", "bad", *where)
    assert (planned["run"], planned["state"], planned["removed"]) == ("bad", "failed", False)
    assert (runs / "bad").is_dir()
    worse = said("clean", "--keep-best", "1", *where)
    assert {one["run"] for one in worse} == {"bad", "lost"}
    (removed,) = said("rm", "bad", "--yes", *where)
    assert removed["removed"]
    assert not (runs / "bad").exists()
    assert [one["run"] for one in said("clean", "--keep-best", "1", "--yes", *where)] == ["lost"]
    assert said("clean", "--keep-best", "1", *where) == []


def test_every_schema_is_one_and_another_command_is_refused() -> None:
    for command in printed():
        jsonschema.Draft202012Validator.check_schema(schema_of(command))
    assert json.loads(dtrain("schema", "--of", "ps").stdout)["title"] == "dtrain ps --json"
    assert "Did you mean 'ps'?" in dtrain("schema", "--of", "pps", check=2).stderr


def test_a_sweep_is_trained_one_run_after_another(tmp_path: Path) -> None:
    sweep = ("--sweep", "train.seed=1,2", "--set", "train.steps=10", "--runs", str(tmp_path))
    out = dtrain("run", str(PROGRAMS / "tiny.yaml"), *sweep).stdout
    assert out.count("10/10") == 2
    assert "submit --sweep" in dtrain("run", str(PROGRAMS / "tiny.yaml"), "--detach", *sweep, check=2).stderr
    assert dtrain("run", str(PROGRAMS / "tiny.yaml"), "--dry-run", *sweep).stdout.count("tiny-seed") >= 2
