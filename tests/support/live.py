"""Real runs for tests: dtrain is started as a person would, in a folder of the test, and things are done to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from processes import in_groups

from dtrain.checkpoint.names import folder_of
from dtrain.common.processes import alive, children
from dtrain.record import sample_ledger
from dtrain.record.folder import RunDir, all_runs
from dtrain.report.audit import audit as audit_of

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "programs"
RECIPES = ROOT / "recipes"
PATIENCE_SECONDS = 300.0
DTRAIN = [sys.executable, "-P", "-m", "dtrain"]


def dtrain(
    *arguments: str, cwd: Path | str = "/", check: int | None = 0, **environment: Any
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; with `check`, its exit code must be that."""
    done = subprocess.run(
        [*DTRAIN, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert check is None or done.returncode == check, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def debugged(run: RunDir, typed: str, *options: str, check: int = 0, **environment: Any) -> tuple[str, str]:
    """What `dtrain debug` shows of the debugger, and says itself, to these lines."""
    done = subprocess.run(
        [*DTRAIN, "debug", str(run.path), *options], input=typed, cwd="/", capture_output=True, text=True,
        timeout=PATIENCE_SECONDS, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == check, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def attached(name: str, runs: Path, **environment: str) -> subprocess.Popen[str]:
    """`dtrain attach`, in a pipe; returned when it has shown a step."""
    process = subprocess.Popen(
        [*DTRAIN, "attach", name, "--runs", str(runs)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd="/", env=os.environ | environment,
    )  # fmt: skip
    assert process.stdout is not None
    shown = []
    for line in iter(process.stdout.readline, ""):
        shown.append(line)
        if "  step " in line:
            return process
    raise AssertionError(f"dtrain attach ended: {''.join(shown)}")


def assert_attached_until_stopped(process: subprocess.Popen[str]) -> None:
    """`dtrain attach` has seen the run's end by a stop."""
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 4, out
    assert "saved at step" in out


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:g} s for {what}")


def process_tree(pid: int) -> set[int]:
    """A process and all below it."""
    found, waiting = set(), [pid]
    while waiting:
        current = waiting.pop()
        found.add(current)
        waiting += children(current)
    return found


def running(pids: set[int]) -> set[int]:
    """Those of the processes that are still there and no zombies."""
    return set(filter(alive, pids))


@contextmanager
def suspended(pids: set[int]) -> Iterator[None]:
    """These processes stand still, as on a machine that is suspended; at the end they are woken."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def silence(claims: Path) -> None:
    """The claims of a run's supervisors have not been renewed for an hour."""
    for claim in claims.iterdir():
        os.utime(claim, (time.time() - 3600,) * 2)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """At this folder, a file system of this size (`64k`); the test is skipped where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Live:
    """One run under way."""

    def __init__(self, process: subprocess.Popen[str], runs: Path, known: set[Path]) -> None:
        self.process = process
        self.runs = runs
        self._known = known
        self._run: RunDir | None = None
        self.pids_seen: set[int] = set()

    @property
    def run(self) -> RunDir:
        """Its folder, as soon as there is one."""
        if self._run is None:
            self._run = wait_for(self._found, "a run folder")
        return self._run

    def _found(self) -> RunDir | None:
        if not (found := self._look()) and self.process.poll() is not None:
            found = self._look()
            assert found, f"the process ended and made no run folder: {self.process.communicate()}"
        return found

    def _look(self) -> RunDir | None:
        return next((run for run in all_runs(self.runs) if run.path not in self._known), None)

    def events(self, name: str = "", **fields: Any) -> list[dict[str, Any]]:
        """The events so far with this name and these fields."""
        text = self.run.events.read_text() if self.run.events.exists() else ""
        found = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [
            e for e in found if name in ("", e["event"]) and all(e.get(key) == value for key, value in fields.items())
        ]

    def wait_event(self, name: str, **fields: Any) -> dict[str, Any]:
        """The first such event, waiting for it."""

        def look() -> dict[str, Any] | None:
            assert self.process.poll() is None or self.events(name, **fields), (
                f"the run ended: {self.process.communicate()}"
            )
            return next(iter(self.events(name, **fields)), None)

        found: dict[str, Any] = wait_for(look, f"the event {name} {fields}")
        return found

    def wait_step(self, step: int, attempt: int = 1, rank: int = 0) -> None:
        """Until a rank has done so many steps in an attempt."""
        path = self.run.ledger(attempt, rank)
        wait_for(
            lambda: (sample_ledger.last_step(path) or 0) >= step or self.process.poll() is not None, f"step {step}"
        )
        self.see()

    def see(self) -> None:
        """Note all processes of the run, to ask later whether any is left."""
        self.pids_seen |= process_tree(self.process.pid)

    def pid(self, rank: int, attempt: int = 1) -> int:
        """The worker's process."""
        self.wait_event("workers_started", attempt=attempt)
        for event in self.events("workers_started", attempt=attempt):
            if str(rank) in event["pids"]:
                self.see()
                return int(event["pids"][str(rank)])
        raise AssertionError(f"no rank {rank} in attempt {attempt}")

    def agent_pid(self, number: int = 0) -> int:
        """The agent's process."""
        self.wait_event("node_ready")
        return int(self.events("node_ready")[number]["pid"])

    def kill(self, rank: int, attempt: int = 1, number: int = signal.SIGKILL) -> None:
        """Signal one worker."""
        os.kill(self.pid(rank, attempt), number)

    def finish(self, code: int = 0) -> str:
        """Wait for the end; all it printed. Nothing of the run may be left."""
        out, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        assert self.process.returncode == code, (
            f"exit code {self.process.returncode}\n{out}\n{err}\n{self.agent_logs()}"
        )
        assert "Traceback" not in err, err
        self.assert_gone()
        return out + err

    def assert_gone(self) -> None:
        """No process of the run is left, nor of its workers' groups."""
        last = max((event["attempt"] for event in self.events("workers_started")), default=0)
        leaders = {pid for event in self.events("workers_started", attempt=last) for pid in event["pids"].values()}
        wait_for(
            lambda: not running(self.pids_seen) and not in_groups(leaders), f"the end of {self.pids_seen | leaders}", 15
        )

    def output(self, rank: int) -> str:
        """What a worker printed so far."""
        path = self.run.rank_log(rank)
        return path.read_text() if path.exists() else ""

    def agent_logs(self) -> str:
        """What agents and zygotes wrote, for a failed test's message; nothing if no run folder was made."""
        if self._run is None and {run.path for run in all_runs(self.runs)} <= self._known:
            return ""
        return "\n".join(path.read_text() for path in self.run.logs.glob("agent-*.log"))

    def weights(self) -> str:
        """Digest of the newest committed checkpoint's weights."""
        return str(self.events("checkpoint_saved")[-1]["weights"])

    def checkpoint(self, step: int) -> Path:
        """The folder of a committed checkpoint."""
        return folder_of(self.run.checkpoints, step)

    def losses(self) -> dict[int, float]:
        """Step → loss of the last attempt that did it."""
        return {event["step"]: event["values"]["loss"] for event in self.events("metrics")}

    def assert_clean_audit(self, steps: int) -> None:
        """Every sample of every committed step exactly once."""
        audit = audit_of(self.run)
        assert audit is not None
        assert audit.clean, audit.problems
        assert audit.steps == steps


@contextmanager
def start(
    *arguments: str, runs: Path, command: str = "run", cwd: Path | str = "/", **environment: Any
) -> Iterator[Live]:
    """`dtrain run …` in the background; whatever the test does, it is gone afterwards."""
    with started([command, *arguments], runs, os.environ | environment, cwd) as live:
        yield live


@contextmanager
def started(
    arguments: list[str],
    runs: Path,
    environment: Mapping[str, str] = os.environ,
    cwd: Path | str = "/",
    shell: str = "",
) -> Iterator[Live]:
    """The same with nothing but these variables, in a process that a shell prepared by these commands."""
    known = {run.path for run in all_runs(runs)} if arguments[0] == "run" else set()
    process = subprocess.Popen(
        [*(("sh", "-c", f'{shell}exec "$@"', "sh") if shell else ()), *DTRAIN, *arguments, "--runs", str(runs)],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    live = Live(process, runs, known)
    try:
        yield live
    finally:
        live.see()
        if process.poll() is None:
            process.kill()
            process.communicate()
        wait_for(lambda: not running(live.pids_seen - {process.pid}), "the end of the run's processes", 30)


def finished(*arguments: str, runs: Path, code: int = 0, **environment: str) -> Live:
    """A run from beginning to end."""
    with start(*arguments, runs=runs, **environment) as live:
        live.finish(code)
    return live


def killed(*arguments: str, runs: Path, step: int, rank: int) -> Live:
    """A run of which one rank is killed after a step, and which trains to its end all the same."""
    with start(*arguments, runs=runs) as live:
        live.wait_step(step)
        live.kill(rank)
        live.finish()
    return live


def stopped(*arguments: str, runs: Path, step: int) -> Live:
    """A run that is stopped by a Ctrl-C after a step, and can be resumed."""
    with start(*arguments, runs=runs) as live:
        live.wait_step(step)
        live.process.send_signal(signal.SIGINT)
        live.finish(code=4)
    return live
