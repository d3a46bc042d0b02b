"""Watching a run from another terminal, full disks, resuming what has ended, and sweeps with a limit."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, Live, dtrain, finished, small_disk, start, stopped, wait_for

from dtrain.record.folder import RunDir, all_runs

RECIPE = str(PROGRAMS / "tiny.yaml")
SLOW = ("--set", "params.pause=0.05")


@pytest.fixture
def submitted(tmp_path: Path) -> Iterator[RunDir]:
    """A run that goes on for some seconds without a terminal."""
    dtrain("submit", RECIPE, *SLOW, "--set", "train.steps=200", "--runs", str(tmp_path))
    (run,) = all_runs(tmp_path)
    wait_for(lambda: run.events.exists() and '"progress"' in run.events.read_text(), "its first steps")
    yield run
    dtrain("stop", run.id, "--now", "--runs", str(tmp_path))


class Terminal:
    """A command in a pseudo terminal."""

    def __init__(self, *command: str) -> None:
        self._own, other = pty.openpty()
        self.process = subprocess.Popen(
            [*DTRAIN, *command], stdin=other, stdout=other, stderr=other, cwd="/", start_new_session=True, close_fds=True,
            env=os.environ | {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"},
        )  # fmt: skip
        os.close(other)
        self.text = ""

    def read(self, expected: str, seconds: float = 60.0) -> str:
        """All that was printed, when the expected text is in it."""
        deadline = time.monotonic() + seconds
        while expected not in self.text:
            assert time.monotonic() < deadline, f"no {expected!r} in {self.text[-2000:]!r}"
            if select.select([self._own], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self._own, 1 << 16).decode(errors="replace")
        return self.text

    def type(self, text: str) -> None:
        """What a person types."""
        os.write(self._own, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + 60
        over = False
        while not over:
            over = self.process.poll() is not None  # and what it wrote before is read once more
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self._own], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self._own, 1 << 16).decode(errors="replace")
        return int(self.process.returncode)


def test_attach_shows_a_run_and_ctrl_c_asks_whether_to_detach_or_to_stop(submitted: RunDir) -> None:
    runs = ("--runs", str(submitted.path.parent))
    one = Terminal("attach", "last", *runs)
    one.read("samples/s")
    one.interrupt()
    one.read("[d]etach and leave")
    one.type("\n")
    assert one.wait() == 0
    assert "goes on" in one.text
    assert submitted.supervised()
    other = Terminal("attach", "last", *runs)
    other.read("samples/s")
    other.interrupt()
    other.read("[s]top it")
    other.type("s\n")
    assert other.wait() == 4
    assert "saved at step" in other.text
    assert "Traceback" not in one.text + other.text


def test_attach_in_a_pipe_and_status_tell_speed_and_time(submitted: RunDir) -> None:
    runs = ("--runs", str(submitted.path.parent))
    process = subprocess.Popen([*DTRAIN, "attach", "last", *runs], stdout=subprocess.PIPE, text=True, cwd="/")
    assert process.stdout is not None
    assert any("samples/s" in line for line in iter(process.stdout.readline, ""))
    status = dtrain("status", "last", *runs).stdout
    assert "samples/s" in status
    assert "elapsed, about" in status
    process.send_signal(signal.SIGINT)
    assert "detached" in process.communicate(timeout=30)[0]
    assert process.returncode == 0
    assert submitted.supervised()


def test_logs_that_are_followed_show_what_happens_to_the_run(submitted: RunDir) -> None:
    runs = ("--runs", str(submitted.path.parent))
    follower = subprocess.Popen([*DTRAIN, "logs", "-f", "last", *runs], stdout=subprocess.PIPE, text=True, cwd="/")
    dtrain("stop", "last", *runs)
    out = follower.communicate(timeout=60)[0]
    assert "stopped by dtrain stop: saving and stopping" in out
    assert "rank 1 | " in out


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A run that has ended."""
    return finished(RECIPE, "--set", "train.steps=20", runs=tmp_path_factory.mktemp("runs"))


def test_a_finished_run_is_not_resumed_without_more_to_do(done: Live) -> None:
    runs = ("--runs", str(done.runs))
    refused = dtrain("resume", "last", *runs, check=2)
    assert "is finished: it did 20 of 20 steps" in refused.stderr
    assert "--set train.steps=40" in refused.stderr
    refused = dtrain("resume", "last", *runs, "--set", "train.steps=30", "--set", "train.seed=4", check=2)
    assert "train.seed cannot change from 3 to 4: 20 steps" in refused.stderr
    refused = dtrain("resume", "last", *runs, "--set", "train.stpes=30", check=2)
    assert "--set train.stpes=30: train.stpes: unknown key 'stpes'" in refused.stderr
    dtrain("resume", "last", *runs, "--set", "train.steps=25")
    done.assert_clean_audit(25)


def test_a_finished_script_is_not_silently_run_again(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("script: s.py\n")
    (tmp_path / "s.py").write_text("print('once')\n")
    dtrain("run", str(tmp_path / "r.yaml"), "--runs", str(tmp_path / "runs"))
    refused = dtrain("resume", "last", "--runs", str(tmp_path / "runs"), check=2)
    assert "its script ended with exit code 0" in refused.stderr


def test_edits_of_the_recipe_are_shown_at_a_resume_and_taken_with_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    text = Path(RECIPE).read_text().replace("tiny.py", str(PROGRAMS / "tiny.py"))
    recipe.write_text(text)
    stopped(str(recipe), *SLOW, runs=tmp_path / "runs", step=12)
    recipe.write_text(text.replace("steps: 60", "steps: 30"))
    runs = ("--runs", str(tmp_path / "runs"))
    shown = dtrain("resume", "last", *runs, "--detach").stdout
    assert "was edited since this run began" in shown
    assert "+  steps: 30" in shown
    dtrain("stop", "last", *runs)
    out = dtrain("resume", "last", *runs, "--recipe", str(recipe)).stdout
    assert "of 30" in out


def test_a_sweep_with_a_limit_ends_with_a_table(tmp_path: Path) -> None:
    sweep = ("--sweep", "train.seed=1,2", "--at-most", "1", "--set", "train.steps=10")
    out = dtrain("submit", RECIPE, *sweep, "--runs", str(tmp_path)).stdout
    table = out.splitlines()[-3:]
    assert table[0].split()[:2] == ["run", "train.seed"]
    assert [line.split()[:2] for line in table[1:]] == [["0", "1"], ["1", "2"]]
    assert all(" done " in line for line in table[1:])
    one, other = (json.loads(line) for run in all_runs(tmp_path) for line in [run.events.read_text().splitlines()[-1]])
    assert abs(one["time"] - other["time"]) > 0
    first_of_second = json.loads(all_runs(tmp_path)[1].events.read_text().splitlines()[0])
    assert first_of_second["time"] >= one["time"], "one after the other"


def test_a_disk_that_fills_in_the_middle_is_said_and_the_end_is_known(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "4m"):
        with start(RECIPE, *SLOW, "--set", "train.steps=60", runs=disk) as live:
            live.wait_event("checkpoint_saved")
            with contextlib.suppress(OSError), open(disk / "ballast", "wb") as ballast:
                while True:
                    ballast.write(bytes(4096))
                    ballast.flush()
            out = live.finish(code=3)
        assert "cannot write" in out or "No space left" in out
        assert "its state could not be saved" in out
        status = dtrain("status", str(live.run.path)).stdout
        assert "gave up" in status, status
        (disk / "ballast").unlink()
        dtrain("resume", str(live.run.path), "--runs", str(disk))


def test_a_full_disk_at_the_start_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "16k"):
        with contextlib.suppress(OSError), open(disk / "ballast", "wb") as ballast:
            ballast.write(bytes(1 << 20))
        failed = dtrain("run", RECIPE, "--runs", str(disk), check=2)
        assert "cannot" in failed.stderr
        assert "No space left on device" in failed.stderr
        assert [path.name for path in disk.iterdir()] == ["ballast"]
