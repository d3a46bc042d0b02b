"""`dtrain debug` of runs that go on: a real debugger in a real rank, typed into through a pipe."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, Live, debugged, dtrain, start

TINY = str(PROGRAMS / "tiny.yaml")
TINY_CODE = (PROGRAMS / "tiny.py").read_text()
SLOW = ("--set", "params.pause=0.03", "--set", "train.steps=1000")


def script(folder: Path, *lines: str) -> str:
    (folder / "program.py").write_text("\n".join(lines))
    (folder / "r.yaml").write_text("script: program.py\nresources: {workers: 2}\n")
    return str(folder / "r.yaml")


def ended(live: Live) -> None:
    dtrain("stop", str(live.run.path), "--now")
    live.finish(code=4)


def test_a_rank_stops_in_the_users_code_at_a_step_and_goes_on_without_a_hang(tmp_path: Path) -> None:
    with start(TINY, *SLOW, "--set", "recovery.hang_seconds=3", runs=tmp_path) as live:
        live.wait_step(5)
        line = TINY_CODE.splitlines().index("        time.sleep(self.pause)") + 1
        typed = f"p total_steps\nb {line}\nc\np tuple(inputs.shape)\n!import time; time.sleep(6)\nq\n"
        out, said = debugged(live.run, typed, "--rank", "1", "--at-step", "150")
        assert "rank 1 stops in step 150" in said
        assert "-> return 1 - step / (2 * total_steps)" in out.split("(rank 1) ")[0], "the user's first line in a step"
        assert "(rank 1) p total_steps\n1000\n" in out
        assert "-> time.sleep(self.pause)" in out
        assert "(16, 8)" in out or "(8, 8)" in out
        stopped = live.events("debugger_stopped")
        assert [(event["rank"], event["where"]) for event in stopped] == [(1, "step 150")]
        assert live.wait_event("debugger_left")["seconds"] >= 6
        live.wait_step(200)
        assert not live.events("hang_detected")
        assert not list((live.run.path / "debug").glob("*")), "nothing is left of the session"
        ended(live)


def test_the_weights_are_as_if_nobody_had_looked(tmp_path: Path) -> None:
    quick = ("--set", "params.pause=0.03")
    with start(TINY, *quick, runs=tmp_path / "a") as live:
        live.wait_step(3)
        debugged(live.run, "n\nn\nq\n", "--at-step", "20")
        live.finish()
    with start(TINY, *quick, runs=tmp_path / "b") as other:
        other.finish()
    assert live.weights() == other.weights()


def test_a_breakpoint_of_a_function_waits_for_somebody_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, torch\n"
        "def train(context):\n"
        "    model, optimizer = context.prepare(lambda: torch.nn.Linear(2, 1), lambda m: torch.optim.SGD(m.parameters(), 0.1))\n"
        "    while context.step < context.total_steps:\n"
        "        secret = context.step * 7\n"
        "        if context.step == 3 and context.rank == 1:\n"
        "            breakpoint()\n"
        "        loss = model(torch.ones(4, 2)).pow(2).mean()\n"
        "        optimizer.zero_grad(); loss.backward(); optimizer.step()\n"
        "        context.report(loss=loss)\n"
    )
    (tmp_path / "r.yaml").write_text(
        "function: mine.py:train\nstrategy: ddp\nresources: {workers: 2}\ntrain: {steps: 30}\nrecovery: {hang_seconds: 3}\n"
    )
    with start(str(tmp_path / "r.yaml"), runs=tmp_path / "runs") as live:
        event = live.wait_event("debugger_stopped")
        assert (event["rank"], event["where"], event["seconds"]) == (1, "mine.py:7", 300)
        assert "rank 1 in a debugger" in dtrain("status", str(live.run.path)).stdout
        time.sleep(4)
        out, said = debugged(live.run, "p secret\nb 10\nc\np float(loss) >= 0\nq\n")
        assert "rank 1 is stopped at breakpoint(), mine.py:7" in said
        assert "(rank 1) p secret\n21\n" in out
        assert "Breakpoint 1 at" in out
        assert "-> context.report(loss=loss)" in out
        assert "True" in out
        printed = live.finish()
    assert f"dtrain debug {live.run.id} --rank 1" in printed
    assert not live.events("hang_detected")


def test_the_first_rank_that_fails_is_held_and_its_frame_can_be_looked_at(tmp_path: Path) -> None:
    bug = ("--set", "params.fail_at=4", "--set", "params.fail_rank=1", "--set", "recovery.hold_seconds=100")
    with start(TINY, *bug, runs=tmp_path) as live:
        assert live.wait_event("debugger_stopped")["reason"] == "exception"
        out, said = debugged(live.run, "p self.fail_how\nu\np self.steps\nq\n")
        assert "rank 1 is stopped after ValueError: the loss of this batch is nonsense" in said
        assert "tiny.py" in out and "(rank 1) p self.fail_how\n'bug'\n" in out
        assert "(rank 1) p self.steps\n5\n" in out
        live.finish(code=1)
    (failure,) = live.events("failure_occurred")
    assert (failure["rank"], failure["kind"]) == (1, "bug")


def test_whoever_waits_for_an_exception_gets_it_without_a_word_in_the_recipe(tmp_path: Path) -> None:
    with start(TINY, "--set", "params.pause=0.03", "--set", "params.fail_at=60", runs=tmp_path) as live:
        live.wait_step(5)
        out, said = debugged(live.run, "w\nq\n", "--on-exception")
        assert "the first rank stops that an exception ends" in said
        assert "-> raise ValueError" in out
        assert "dtrain/worker" not in out, "the stack begins with the user's code"
        live.finish(code=1)


def test_nobody_comes_and_the_run_goes_on(tmp_path: Path) -> None:
    with start(TINY, "--set", "params.fail_at=4", "--set", "recovery.hold_seconds=1", runs=tmp_path) as live:
        live.finish(code=1)
    assert 0.9 < live.events("debugger_left")[0]["seconds"] < 30


def test_a_script_stops_at_its_breakpoint_and_python_can_be_told_to_ignore_it(tmp_path: Path) -> None:
    recipe = script(
        tmp_path, "import os", "note = os.environ['RANK']", "if note == '1':", "    breakpoint()", "print('end')"
    )
    with start(recipe, runs=tmp_path / "runs") as live:
        live.wait_event("debugger_stopped")
        out, _ = debugged(live.run, "p note\nc\n")
        assert "(rank 1) p note\n'1'\n" in out
        live.finish()
    with open(recipe, "a") as file:
        file.write('env: {PYTHONBREAKPOINT: "0"}\n')
    with start(recipe, runs=tmp_path / "more") as live:
        live.finish()
    assert not live.events("debugger_stopped")


def test_who_cannot_be_debugged_is_told_why(tmp_path: Path) -> None:
    with start(script(tmp_path, "import time", "time.sleep(100)"), runs=tmp_path / "runs") as live:
        live.wait_event("workers_started")
        assert "Call breakpoint() in it" in debugged(live.run, "", check=2)[1]
        assert "two ways to stop" in debugged(live.run, "", "--at-step", "3", "--on-exception", check=2)[1]
        assert "no rank 9 runs now" in debugged(live.run, "", "--rank", "9", "--on-exception", check=2)[1]
        ended(live)
    assert "is not running: stopped" in debugged(live.run, "", check=2)[1]


def test_a_second_terminal_is_refused_and_one_that_is_killed_holds_nothing_up(tmp_path: Path) -> None:
    with start(TINY, *SLOW, runs=tmp_path) as live:
        live.wait_step(5)
        command = [*DTRAIN, "debug", str(live.run.path), "--rank", "1"]
        first = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
        )
        live.wait_event("debugger_stopped")
        assert "another terminal debugs this run" in debugged(live.run, "", check=2)[1]
        (session,) = (live.run.path / "debug").iterdir()
        assert stat.S_IMODE(session.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in session.iterdir()} == {0o600}
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        step = live.events("debugger_stopped")[0]["where"].split()[1]
        live.wait_step(int(step) + 20)
        assert live.events("debugger_left")
        ended(live)


def test_ctrl_c_before_the_rank_stops_leaves_it_alone(tmp_path: Path) -> None:
    with start(TINY, *SLOW, runs=tmp_path) as live:
        live.wait_step(5)
        command = [*DTRAIN, "debug", str(live.run.path), "--at-step", "200"]
        waiting = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", text=True)  # fmt: skip
        assert waiting.stderr is not None
        assert "rank 0 stops in step 200" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert "the run goes on" in waiting.communicate()[1]
        assert waiting.returncode == 130
        live.wait_step(210)
        assert not live.events("debugger_stopped")
        ended(live)


def test_a_stop_does_not_wait_for_a_person(tmp_path: Path) -> None:
    with start(TINY, *SLOW, runs=tmp_path) as live:
        live.wait_step(5)
        command = [*DTRAIN, "debug", str(live.run.path)]
        terminal = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
        )
        live.wait_event("debugger_stopped")
        live.process.send_signal(signal.SIGINT)
        assert "saved at step" in live.finish(code=4)
        assert terminal.stdin is not None
        terminal.stdin.close()
        assert terminal.wait(timeout=30) in (0, 130)
        for stream in (terminal.stdout, terminal.stderr):
            assert stream is not None
            stream.close()


def test_tensorflow_stops_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    slow = (
        "--set",
        "params.pause=0.1",
        "--set",
        "train.steps=300",
        "--workers",
        "2",
        "--strategy",
        "multi_worker_mirrored",
    )
    with start(str(PROGRAMS / "contract_tensorflow.yaml"), *slow, runs=tmp_path) as live:
        live.wait_step(2)
        out, said = debugged(live.run, "p step\nq\n", "--rank", "1")
        assert "rank 1 is stopped in step" in said
        assert "(rank 1) " in out
        live.wait_step(int(said.split("is stopped in step ")[1].split()[0]) + 5)
        ended(live)
