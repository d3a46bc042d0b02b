"""Scripts that know nothing of dtrain get their launcher's environment, restarts and a clean end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from live import PROGRAMS, dtrain, finished, start, wait_for


def recipe(tmp_path: Path, pause: float) -> str:
    """The counting script with its state in the test's folder."""
    path = tmp_path / "counting.yaml"
    path.write_text((PROGRAMS / "counting.yaml").read_text().replace("counting.py", str(PROGRAMS / "counting.py")))
    with open(path, "a") as file:
        file.write(f"args: ['{tmp_path}', 40, {pause}]\n")
    return str(path)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_torchrun_script_runs_as_it_is(tmp_path: Path) -> None:
    live = finished(recipe(tmp_path, 0.0), runs=tmp_path / "runs")
    assert "rank 1 of 2: sum 1170" in live.output(1)


def test_a_killed_script_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    with start(recipe(tmp_path, 0.02), runs=tmp_path / "runs") as live:
        for attempt, rank in enumerate([0, 1, 1], start=1):
            live.pid(rank, attempt)
            live_steps = tmp_path / f"steps-{rank}"
            before = lines(live_steps)
            wait_for(lambda: lines(live_steps) > before + 5, "steps")  # noqa: B023
            live.kill(rank, attempt)
        live.finish()
    assert "rank 0 of 2: sum 1170" in live.output(0)
    assert [event["kind"] for event in live.events("failure_occurred")] == ["killed"] * 3


def test_any_program_can_be_a_script(tmp_path: Path) -> None:
    program = tmp_path / "count.sh"
    program.write_text('#!/bin/sh\necho "$RANK of $WORLD_SIZE with $1"\nexit $((RANK * 7))\n')
    program.chmod(0o755)
    (tmp_path / "r.yaml").write_text("script: count.sh\nargs: ['a b']\nresources: {workers: 2}\n")
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs", code=1)
    assert "1 of 2 with a b" in live.output(1)
    failure = live.events("failure_occurred")[0]
    assert (failure["kind"], failure["rank"], failure["code"]) == ("bug", 1, 7)


def test_children_of_a_worker_end_with_it(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(
        "import subprocess, time, os\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    (tmp_path / "r.yaml").write_text("script: parent.py\nresources: {workers: 2}\nrecovery: {restarts: 0}\n")
    for victim in ("worker", "agent", "supervisor"):
        with start(str(tmp_path / "r.yaml"), runs=tmp_path / victim) as live:
            live.wait_event("workers_started")
            wait_for(lambda: "child" in live.output(1), "the child")
            live.see()
            if victim == "worker":
                live.kill(0)
                live.finish(code=3)
            elif victim == "agent":
                os.kill(live.agent_pid(), signal.SIGKILL)
                live.wait_event("workers_started", attempt=2)
                live.see()
                live.process.send_signal(signal.SIGINT)
                live.finish(code=4)
            else:
                live.process.kill()
                live.process.communicate()
            live.assert_gone()


def test_stop_gives_a_script_its_sigterm(tmp_path: Path) -> None:
    (tmp_path / "polite.py").write_text(
        "import signal, sys, time\n"
        "def bye(*_):\n    print('saving my work', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\nprint('ready', flush=True)\ntime.sleep(1000)\n"
    )
    (tmp_path / "r.yaml").write_text("script: polite.py\n")
    with start(str(tmp_path / "r.yaml"), runs=tmp_path / "runs") as live:
        live.wait_event("workers_started")
        wait_for(lambda: "ready" in live.output(0), "the script")
        out = dtrain("stop", "last", "--runs", str(tmp_path / "runs")).stdout
        assert "stopped" in out
        live.finish(code=4)
    assert "saving my work" in live.output(0)


def test_of_a_log_that_is_too_large_the_beginning_and_the_end_are_kept(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(
        "for number in range(250_000):\n    print(f'line {number:07d} of a program that talks')\n"
    )
    (tmp_path / "r.yaml").write_text("script: talks.py\nlogs: {keep: 2MB}\n")
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs")
    assert sum(event["removed"] for event in live.events("log_shortened")) > 6_000_000
    assert live.run.rank_log(0).stat().st_blocks * 512 <= 2_000_000
    shown = dtrain("logs", "last", "--runs", str(tmp_path / "runs")).stdout.splitlines()
    assert [text for text in shown if "of this log were removed here" in text]
    assert "rank 0 | line 0000000 of a program that talks" in shown
    assert shown[-1] == "rank 0 | line 0249999 of a program that talks"
    wrong = dtrain("plan", str(tmp_path / "r.yaml"), "--set", "logs.keep=2x", check=2).stderr
    assert "logs.keep" in wrong
    assert "500MB" in wrong
