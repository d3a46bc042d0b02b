"""What a person types without having read much: it works, or one sentence says what does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, Live, dtrain, finished, start, wait_for

from dtrain.record.folder import all_runs

RECIPE = str(PROGRAMS / "tiny.yaml")
SLOW = ("--set", "params.pause=0.2", "--set", "train.steps=1000")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A run that has ended."""
    return finished(RECIPE, "--set", "train.steps=20", runs=tmp_path_factory.mktemp("runs"))


def step_of(name: str, runs: str) -> int:
    return int(json.loads(dtrain("status", name, "--json", DTRAIN_RUNS=runs).stdout)["step"])


def test_without_a_run_the_last_one_is_meant(done: Live) -> None:
    runs = str(done.runs)
    for command in ("status", "attach", "report"):
        assert done.run.id in dtrain(command, DTRAIN_RUNS=runs).stdout, command
    assert "0 twice" in dtrain("audit", DTRAIN_RUNS=runs).stdout
    for command in ("top", "stacks", "profile"):
        assert "is not running: done" in dtrain(command, DTRAIN_RUNS=runs, check=2).stderr, command
    assert dtrain("logs", "-n", "1", DTRAIN_RUNS=runs).stdout.count("\n") == 2, "one line of each rank"
    assert f"{done.run.id} is not running: done" in dtrain("stop", DTRAIN_RUNS=runs).stdout
    assert dtrain("stop", "--all", DTRAIN_RUNS=runs).stdout.startswith("no run goes on")
    assert json.loads(dtrain("status", "--watch", "--json", DTRAIN_RUNS=runs).stdout)["outcome"] == "done"


def test_a_recipe_need_not_name_a_strategy(tmp_path: Path) -> None:
    text = Path(RECIPE).read_text().replace("strategy: ddp\n", "").replace("tiny.py", str(PROGRAMS / "tiny.py"))
    (tmp_path / "r.yaml").write_text(text)
    assert "ddp was chosen since: 2 workers" in dtrain("plan", "r.yaml", cwd=tmp_path).stdout
    assert "done" in dtrain("run", "r.yaml", "--set", "train.steps=5", cwd=tmp_path).stdout


def test_what_the_options_say_reaches_the_workers(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("script: /bin/sh\nargs: [-c, 'echo A is $A B is $B']\nenv: {B: kept}\n")
    finished(str(tmp_path / "r.yaml"), "--env", "A=a b", "--env", "B=2", runs=tmp_path / "runs")
    assert "A is a b B is 2" in dtrain("logs", DTRAIN_RUNS=str(tmp_path / "runs")).stdout
    live = finished(RECIPE, "--seed", "9", "--set", "train.steps=2", runs=tmp_path / "seeds")
    assert live.run.job().train.seed == 9


def test_a_script_needs_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "lib.py").write_text("word = 'lib'\n")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "beside.py").write_text("word = 'beside'\n")
    (tmp_path / "code" / "train.py").write_text(
        "import os, sys, beside\nprint('got', sys.argv[1:], beside.word, os.getcwd())\n"
    )
    out = dtrain("run", "code/train.py", "--", "--lr", "0.10", cwd=tmp_path).stdout
    (run,) = all_runs(tmp_path / "runs")
    told = f"made a recipe: script code/train.py on 1 worker (--workers N); it is kept in runs/{run.id}/recipe.yaml"
    assert out.splitlines()[0] == told
    assert f"got ['--lr', '0.10'] beside {tmp_path}" in out
    assert "--lr" in run.recipe_copy.read_text()
    assert "stands behind '--'" in dtrain("run", "code/train.py", "--lr", "1", cwd=tmp_path, check=2).stderr
    assert dtrain("submit", "-q", "code/train.py", "a", cwd=tmp_path).stdout.startswith("train-")
    assert "script code/train.py" in dtrain("plan", "code/train.py", cwd=tmp_path).stdout


def test_a_task_needs_no_recipe(tmp_path: Path) -> None:
    task = f"{PROGRAMS / 'tiny.py'}:Tiny"
    out = dtrain("run", task, "--workers", "2", cwd=tmp_path).stdout
    assert f"made a recipe: task {task} on 2 workers (--workers N), 1 epoch (--set train.epochs=N)" in out
    assert ": done in" in out


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_dry_run_is_the_plan_and_starts_nothing(command: str, tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    shown = dtrain(command, RECIPE, "--dry-run", "--workers", "4", DTRAIN_RUNS=runs).stdout
    assert shown == dtrain("plan", RECIPE, "--workers", "4", DTRAIN_RUNS=runs).stdout
    assert "ddp on 4 workers" in shown
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_of_a_resume_changes_nothing(done: Live) -> None:
    before = {path: path.read_bytes() for path in done.run.path.rglob("*") if path.is_file()}
    given = ("resume", "last", "--dry-run", "--set", "train.steps=40")
    assert "4 workers" in dtrain(*given, "--workers", "4", DTRAIN_RUNS=str(done.runs)).stdout
    assert "cannot change" in dtrain(*given, "--set", "train.seed=8", check=2, DTRAIN_RUNS=str(done.runs)).stderr
    assert before == {path: path.read_bytes() for path in done.run.path.rglob("*") if path.is_file()}


def test_quiet_prints_the_end_alone_and_verbose_the_output_of_every_rank(tmp_path: Path) -> None:
    given = (RECIPE, "--set", "train.steps=3", "--runs", str(tmp_path))
    quiet = dtrain("run", "-q", *given).stdout
    assert quiet.startswith("tiny-")
    assert ": done in" in quiet.splitlines()[0]
    (tmp_path / "r.yaml").write_text("script: /bin/sh\nresources: {workers: 2}\nargs: [-c, 'echo I am $RANK']\n")
    loud = dtrain("run", "-v", str(tmp_path / "r.yaml"), "--runs", str(tmp_path)).stdout
    assert "rank 0 | I am 0" in loud
    assert "rank 1 | I am 1" in loud
    resumed = dtrain("resume", "tiny", "-q", "--detach", "--set", "train.steps=6", "--runs", str(tmp_path)).stdout
    (run,) = [run for run in all_runs(tmp_path) if run.id.startswith("tiny")]
    assert resumed == f"{run.id}\n"
    wait_for(lambda: step_of(run.id, str(tmp_path)) == 6, "step 6")


def test_a_detached_sweep_is_stopped_and_removed_by_what_its_ids_begin_with(tmp_path: Path) -> None:
    runs = str(tmp_path)
    with start(RECIPE, "--name", "other", *SLOW, runs=tmp_path) as other:
        other.wait_step(1)
        given = (RECIPE, "--workers", "1", "--sweep", "train.seed=1,2", *SLOW)
        ids = dtrain("submit", "-q", *given, DTRAIN_RUNS=runs).stdout.split()
        assert len(ids) == 2
        wait_for(lambda: all(step_of(name, runs) > 1 for name in ids), "their second steps")
        assert dtrain("rm", "tiny-seed", "--yes", check=2, DTRAIN_RUNS=runs).stderr.count("goes on") == 1
        assert dtrain("stop", "tiny-seed", DTRAIN_RUNS=runs).stdout.count("has ended: stopped") == 2
        assert other.process.poll() is None
        dtrain("rm", "tiny-seed", "--yes", DTRAIN_RUNS=runs)
        assert [run.id for run in all_runs(tmp_path)] == [other.run.id]
        assert "saved at step" in dtrain("stop", "--all", DTRAIN_RUNS=runs).stdout
        other.finish(code=4)
    assert "no run goes on" in dtrain("stop", "--all", DTRAIN_RUNS=str(tmp_path / "none")).stdout


def test_run_detach_gives_the_terminal_back(tmp_path: Path) -> None:
    out = dtrain("run", "-d", RECIPE, "--set", "train.steps=5", "--runs", str(tmp_path)).stdout
    assert "dtrain attach tiny-" in out
    assert "done" in dtrain("attach", "--runs", str(tmp_path)).stdout


def test_ctrl_c_while_workers_start_ends_them_without_a_step(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\nfrom tiny import Tiny\n")

    with start(RECIPE, "--set", f"task={tmp_path / 'slow.py'}:Tiny", runs=tmp_path) as live:
        live.wait_event("workers_started")
        live.process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        live.finish(code=4)
        assert time.monotonic() - asked < 5, "the end of its processes included"
        stop, end = live.events("stop_requested")[0], live.events("run_ended")[0]
        assert end["time"] - stop["time"] < 1
        assert not live.events("training_started")
        assert not live.events("checkpoint_saved")
        assert not live.losses()


def test_ctrl_c_while_dtrain_itself_is_imported_is_silent(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [*DTRAIN, "status"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == ""
    assert process.returncode == -signal.SIGINT


def test_a_shell_script_waits_for_runs_and_learns_how_they_ended(tmp_path: Path) -> None:
    runs = str(tmp_path)
    good = dtrain("submit", "-q", RECIPE, "--set", "train.steps=5", DTRAIN_RUNS=runs).stdout.strip()
    assert dtrain("wait", DTRAIN_RUNS=runs).stdout == f"{good}: done\n"
    bad = dtrain("submit", "-q", RECIPE, "--set", "params.fail_at=2", "--name", "bad", DTRAIN_RUNS=runs).stdout.strip()
    ended = dtrain("wait", good, "bad", check=1, DTRAIN_RUNS=runs).stdout.splitlines()
    assert ended[0] == f"{good}: done"
    assert ended[1].startswith(f"{bad}: failed - bug: ")
    assert dtrain("wait", "-q", bad, check=1, DTRAIN_RUNS=runs).stdout == ""
    with start(RECIPE, *SLOW, runs=tmp_path) as live:
        live.wait_step(1)
        waiting = subprocess.Popen([*DTRAIN, "wait", "--runs", runs], stdout=subprocess.PIPE, text=True, cwd="/")
        time.sleep(1)
        assert waiting.poll() is None
        live.process.send_signal(signal.SIGINT)
        live.finish(code=4)
        assert "stopped" in waiting.communicate(timeout=30)[0]
        assert waiting.returncode == 4


def test_runs_are_found_by_their_tags_and_say_their_notes(tmp_path: Path) -> None:
    runs = str(tmp_path)
    given = (RECIPE, "--workers", "1", "--set", "train.steps=3")
    for number, more in enumerate(
        (["--tag", "data=v1", "--note", "the base"], ["--tag", "data=v2", "--tag", "wide=1"], [])
    ):
        dtrain("run", "-q", *given, *more, "--name", f"run{number}", DTRAIN_RUNS=runs)

    def found(*tags: str) -> list[str]:
        words = [word for tag in tags for word in ("--tag", tag)]
        return [row["run"][:4] for row in json.loads(dtrain("ps", "--json", *words, DTRAIN_RUNS=runs).stdout)]

    assert found("data") == ["run0", "run1"]
    assert found("data=v2") == ["run1"]
    assert found("data", "wide=1") == ["run1"]
    assert found("data=v3") == []
    assert "no such runs" in dtrain("ps", "--tag", "other", DTRAIN_RUNS=runs).stdout
    assert "data=v2 wide=1" in dtrain("ps", DTRAIN_RUNS=runs).stdout
    for command in ("status", "report"):
        shown = dtrain(command, "run0", DTRAIN_RUNS=runs).stdout
        assert "data=v1" in shown
        assert "the base" in shown
    assert json.loads(dtrain("report", "run0", "--json", DTRAIN_RUNS=runs).stdout)["note"] == "the base"
    assert "tags.data" in dtrain("compare", "run0", "run1", DTRAIN_RUNS=runs).stdout
    assert "KEY=VALUE" in dtrain("run", RECIPE, "--tag", "x", check=2, DTRAIN_RUNS=runs).stderr
