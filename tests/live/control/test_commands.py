"""Every command as it is typed, from another folder: what it prints, what it leaves, how it exits."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, Live, dtrain, finished, running, start, wait_for

from dtrain.record.folder import all_runs

RECIPE = str(PROGRAMS / "tiny.yaml")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A run that has ended."""
    return finished(RECIPE, "--set", "train.steps=20", runs=tmp_path_factory.mktemp("runs"))


def test_a_wrong_recipe_starts_nothing(tmp_path: Path) -> None:
    for command in ("run", "submit", "plan"):
        failed = dtrain(command, RECIPE, "--strategy", "dpp", "--runs", str(tmp_path / "runs"), check=2)
        assert "Did you mean 'ddp'?" in failed.stderr
        assert failed.stdout == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["run", RECIPE, "--gpus", "2"], "2 GPUs are asked for and this machine has 0"),
        (["run", RECIPE, "--gpus", "1", "--workers", "2"], "Give one of them"),
        (["run", RECIPE, "--set", "train.steps"], "not of the form section.key=value"),
        (["run", RECIPE, "--worker", "2"], "No such option"),
        (["rnu"], "No such command"),
        (["status", "nothing"], "there are no runs in"),
        (["logs", "last"], "there are no runs in"),
        (["resume", "/"], "there are no runs in"),
        (["drill"], "drill needs a recipe"),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else None,
)
def test_what_is_mistyped_is_one_clear_message(arguments: list[str], words: str, tmp_path: Path) -> None:
    failed = dtrain(*arguments, check=2, DTRAIN_RUNS=str(tmp_path))
    assert words in failed.stderr


def test_the_faults_of_a_drill_are_listed_without_a_recipe() -> None:
    shown = dtrain("drill", "--list").stdout
    assert "\nnetwork-cut " in shown
    assert "phases (kill@evaluation):" in shown


def test_plan_shows_everything_and_starts_nothing(tmp_path: Path) -> None:
    shown = json.loads(
        dtrain("plan", RECIPE, "--workers", "4", "--nodes", "2", "--json", "--runs", str(tmp_path / "no")).stdout
    )
    assert [rank["environment"]["RANK"] for rank in shown["ranks"]] == ["0", "1", "2", "3"]
    assert [rank["node"] for rank in shown["ranks"]] == ["node0", "node0", "node1", "node1"]
    assert shown["numbers"] == {"global_batch": 32, "shards": 4}
    text = dtrain("plan", RECIPE, "--runs", str(tmp_path / "no")).stdout
    assert "MASTER_ADDR=127.0.0.1" in text
    assert not (tmp_path / "no").exists()


def test_ps_status_and_logs_of_a_finished_run(done: Live) -> None:
    runs = ("--runs", str(done.runs))
    (row,) = json.loads(dtrain("ps", "--json", *runs).stdout)
    assert (row["state"], row["step"], row["total_steps"], row["restarts"]) == ("done", 20, 20, 0)
    assert done.run.id in dtrain("ps", *runs).stdout
    state = json.loads(dtrain("status", "last", "--json", *runs).stdout)
    assert state["outcome"] == "done"
    assert 0 < state["report"]["goodput"] <= 1
    assert "weights digest" in dtrain("status", done.run.id[:8], *runs).stdout
    assert dtrain("logs", "last", "--rank", "1", *runs).stdout.startswith("rank 1 | ")
    assert "it has ranks 0 to 1" in dtrain("logs", "last", "--rank", "7", *runs, check=2).stderr
    assert "0 twice, 0 skipped" in dtrain("audit", "last", *runs).stdout
    assert "is not running: done" in dtrain("stop", "last", *runs).stdout


def test_plugins_and_schema_are_json() -> None:
    rows = json.loads(dtrain("plugins", "--json").stdout)
    assert {"ddp", "script", "mirrored", "local"} <= {row["name"] for row in rows}
    assert "properties" in json.loads(dtrain("schema").stdout)
    assert "ddp" in dtrain("plugins").stdout


def test_a_submitted_run_goes_on_without_its_terminal_and_can_be_stopped_and_resumed(tmp_path: Path) -> None:
    runs = ("--runs", str(tmp_path / "runs"))
    out = dtrain("submit", RECIPE, "--set", "params.pause=0.3", "--name", "far", *runs).stdout
    assert "dtrain attach far-" in out
    (run,) = wait_for(lambda: all_runs(tmp_path / "runs"), "the run")
    follower = subprocess.Popen([*DTRAIN, "logs", "-f", "last", *runs], stdout=subprocess.PIPE, text=True, cwd="/")
    wait_for(lambda: "step" in run.events.read_text() if run.events.exists() else "", "its first words")
    wait_for(lambda: json.loads(dtrain("status", "far", "--json", *runs).stdout)["step"] > 3, "step 4")
    assert json.loads(dtrain("ps", "--json", *runs).stdout)[0]["state"] == "running"
    stopped = dtrain("stop", "far", *runs).stdout
    assert "saved at step" in stopped
    assert "attempt 1" in follower.communicate(timeout=20)[0]
    dtrain("resume", "far", "--detach", "--set", "params.pause=0", *runs)
    wait_for(lambda: json.loads(dtrain("status", "far", "--json", *runs).stdout)["outcome"] == "done", "the end")
    assert json.loads(dtrain("audit", "far", "--json", *runs).stdout)["clean"]


SUBMIT = """
import subprocess, sys
subprocess.Popen(["sleep", "1000"], start_new_session=True)
subprocess.run([sys.executable, "-P", "-m", "dtrain", "submit", *sys.argv[1:]], check=True)
"""


@pytest.mark.parametrize("ended", ["by itself", "kill -9 of its supervisor"])
def test_a_run_that_a_worker_submits_outlives_the_attempt(ended: str, tmp_path: Path) -> None:
    (tmp_path / "submits.py").write_text(SUBMIT + ("" if ended == "by itself" else "import time; time.sleep(1000)"))
    inner = tmp_path / "inner"
    given = [RECIPE, "--set=params.pause=0.1", "--set=recovery.restarts=0", f"--runs={inner}"]
    (tmp_path / "outer.yaml").write_text(
        f"script: submits.py\nstrategy: script\nresources: {{workers: 1}}\nrecovery: {{restarts: 0}}\nargs: {json.dumps(given)}\n"
    )
    with start(str(tmp_path / "outer.yaml"), runs=tmp_path / "outer") as outer:
        (run,) = wait_for(lambda: inner.exists() and all_runs(inner), "the submitted run")
        wait_for(lambda: run.events.exists() and "workers_started" in run.events.read_text(), "its workers", 60)
        if ended != "by itself":
            outer.process.kill()
        outer.process.communicate(timeout=60)
    wait_for(
        lambda: json.loads(dtrain("status", str(run.path), "--json").stdout)["exit_code"] is not None, "the end", 60
    )
    assert json.loads(dtrain("status", str(run.path), "--json").stdout)["outcome"] == "done"


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    with start(RECIPE, runs=tmp_path) as one:
        one.wait_event("attempt_started")
        with start(RECIPE, runs=tmp_path) as other:
            assert other.run.path != one.run.path
            other.finish()
        one.finish()
    assert one.weights() == other.weights()


def test_a_run_has_one_supervisor(tmp_path: Path) -> None:
    with start(RECIPE, "--set", "params.pause=0.05", runs=tmp_path) as live:
        live.wait_event("attempt_started")
        refused = dtrain("resume", "last", "--runs", str(tmp_path), check=2)
        assert "still going on" in refused.stderr
        live.process.send_signal(signal.SIGINT)
        live.finish(code=4)


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    command = " ".join([*DTRAIN, "run", RECIPE, "--set", "params.pause=0.01", "--runs", str(tmp_path)])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0"
    (run,) = all_runs(tmp_path)
    assert '"event":"run_ended","exit_code":0' in run.events.read_text()


def test_a_moved_run_folder_is_found_by_its_path(done: Live, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(done.run.path)
    assert "done" in dtrain("status", str(link)).stdout


def test_a_run_whose_folder_is_deleted_ends_and_says_so(tmp_path: Path) -> None:
    with start(RECIPE, "--set", "train.steps=100000", "--set", "params.pause=0.01", runs=tmp_path) as live:
        live.wait_step(5)
        pids = set(live.pids_seen)
        shutil.rmtree(live.run.path, ignore_errors=True)
        out, err = live.process.communicate(timeout=120)
    assert live.process.returncode == 3, err
    assert err.splitlines()[-2:] == [
        "dtrain: the folder of this run was deleted while it went on",
        "  What was saved nowhere else is lost: start it again.",
    ]
    assert "dtrain resume" not in out + err
    wait_for(lambda: not running(pids), "the end of its processes")
