"""The runs of a drill: one undisturbed, then one for each fault, one after another, each under a supervisor of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from dtrain.api.plan import supervisor_command
from dtrain.common import environment
from dtrain.common.errors import Exit
from dtrain.common.processes import die_with_parent
from dtrain.control import create, remove, start
from dtrain.control.follow import Watcher
from dtrain.control.stop import stop
from dtrain.drill import checks, equality, injection, operation_difference
from dtrain.drill.cases import Case
from dtrain.drill.checks import History
from dtrain.drill.fault import Schedule, Side, encode
from dtrain.drill.leak_check import Leftovers, adopt_orphans
from dtrain.drill.result import Row
from dtrain.job.job import Job
from dtrain.launch import registry
from dtrain.record import event_log
from dtrain.record.events import Requeued, RunEnded
from dtrain.record.folder import RunDir
from dtrain.show import render

LEAST_SECONDS, TIMES_UNDISTURBED = 90.0, 10.0
"""A run that takes longer than both is ended: it hangs."""
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2
SUPERVISOR_LOG = "supervisor.log"


class Interrupted(Exception):
    """Ctrl-C has ended the run under way, and ends the drill."""


class Drill:
    """The runs of a drill so far."""

    def __init__(self, job: Job, recipe: Path, folder: Path, *, keep: bool, explain: bool, quiet: bool) -> None:
        self._job = job
        self._recipe = recipe
        self.folder = folder
        self._keep = keep
        """Checkpoints stay."""
        self._explain = explain
        self._quiet = quiet
        self._cluster = registry.cluster_of(job)
        self._here = self._cluster.same_machine
        self._undisturbed: History | None = None
        self._usual = set[str]()
        """Temporary files that the job leaves undisturbed."""
        self._repeatable: bool | None = None
        """Whether two undisturbed runs end with the same weights, if somebody had to know."""
        if self._here:
            adopt_orphans()

    def undisturbed(self) -> tuple[Row, History]:
        """The run that all others are compared with."""
        history = self._run("undisturbed", ())
        self._undisturbed = history
        row = Row(
            Case("undisturbed"), str(history.run.path), exit_code=_last(history),
            end=f"exit code {_last(history)}" if history.is_script else f"step {history.saved_step}",
            broken=tuple(checks.alarms(history)), seconds=history.seconds,
        )  # fmt: skip
        return row, history

    def run(self, case: Case, title: str) -> Row:
        """One run with faults, compared with the undisturbed one."""
        assert self._undisturbed is not None
        if case.not_applicable:
            return Row(case, struck=False)
        history = self._run(title, case.schedule)
        row = self._judged(case, history)
        self._say_end(title, row)
        if not row.broken and not self._keep:
            remove.forget_checkpoints(history.run)
        return row

    def forget(self) -> None:
        """Free the disk that the undisturbed run takes, unless it is to stay."""
        if self._undisturbed and not self._keep:
            remove.forget_checkpoints(self._undisturbed.run)

    def say(self, text: str) -> None:
        """A line about the progress."""
        self._clear()
        print(text, file=sys.stderr if self._quiet else sys.stdout, flush=True)

    def _judged(self, case: Case, history: History) -> Row:
        struck = len({one.attempt for one in history.injected})
        problem = next((one.problem for one in history.injected if one.problem), "") or checks.too_late(history)
        row = Row(
            case, str(history.run.path), struck == len(case.schedule), problem, history.detected_seconds,
            tuple(failure.kind for failure in history.failures), history.next_step_seconds, history.steps_lost,
            history.seconds_lost, history.charged, _last(history), seconds=history.seconds,
        )  # fmt: skip
        if problem or not row.struck:
            missed = case.schedule[min(struck, len(case.schedule) - 1)]
            why = problem or f"{missed.text} was not reached"
            return replace(row, problem=why, end=f"exit code {row.exit_code}", broken=tuple(checks.not_struck(history)))
        end, parted = self._end_state(history)
        return replace(row, end=end, broken=(*checks.broken(history), *([parted] if parted else [])))

    def _end_state(self, history: History) -> tuple[str, str]:
        """Describe the end state, and the promise that it breaks."""
        undisturbed = self._undisturbed
        assert undisturbed is not None
        if history.is_script:
            return f"exit code {_last(history)}", ""
        if _last(history) != Exit.DONE:
            return f"stopped, step {history.saved_step} saved", ""
        found = equality.compared(history, undisturbed)
        if found == equality.BIT_EQUAL:
            return found, ""
        if not self._is_repeatable():
            return f"{found} (two undisturbed runs differ, too)", ""
        if self._explain:
            text, steps = equality.explained(history, undisturbed)
            found = "; ".join(one for one in (found, text, self._operation(history, steps)) if one)
        return "not bit-equal", found

    def _operation(self, history: History, steps: range) -> str:
        """The first operation that differs in these steps, found by doing both runs once more."""
        reason = operation_difference.not_compared(history.run.job())
        if reason or not steps:
            return reason
        runs = [
            self._run(f"{what}, to compare every operation", schedule, steps)
            for what, schedule in (("undisturbed", ()), (history.run.id, history.schedule))
        ]
        failed = [f"{one.run.id} (exit code {_last(one)})" for one in runs if _last(one) != Exit.DONE]
        if failed:
            return f"the operations could not be compared: with a log of them, {failed[0]} did not reach its end"
        undisturbed, again = (one.run for one in runs)
        found = operation_difference.found(again, undisturbed, steps)
        for run in () if self._keep else (undisturbed, again):
            remove.forget_checkpoints(run)
        return found or "no step whose operations were logged was done by both runs"

    def _is_repeatable(self) -> bool:
        """Whether the job itself ends with the same weights twice, found by another undisturbed run."""
        if self._repeatable is None:
            assert self._undisturbed is not None
            again = self._run("undisturbed once more, to see whether the job repeats itself", ())
            self._repeatable = equality.weights(again) == equality.weights(self._undisturbed)
        return self._repeatable

    def _run(self, title: str, schedule: Schedule, logged: range = range(0)) -> History:
        """A run to its end, resumed if a fault ended its supervisor or had it leave; it logs the operations of these steps."""
        run = create.made(replace(self._job, name=_folder_name(schedule)), self._recipe, self.folder)
        began, codes, overdue = time.monotonic(), list[int](), ""
        limit = max(LEAST_SECONDS, TIMES_UNDISTURBED * (self._undisturbed.seconds if self._undisturbed else 0.0))
        deadline = began + limit if self._undisturbed else float("inf")
        left = Leftovers() if self._here else None
        told = {environment.HOOKS: f"{injection.__name__}={encode(schedule)}"} if schedule else {}
        told |= {environment.OPERATIONS: f"{logged.start}:{logged.stop}"} if logged else {}
        told |= {"TMPDIR": str(left.temporary)} if left else {}
        resumable = sum(fault.type.side is Side.SUPERVISOR for fault in schedule)
        while not codes or (codes[-1] in (-signal.SIGKILL, Exit.RESUMABLE) and len(codes) <= resumable):
            code = self._supervised(run, title, told, left, deadline)
            if code is None:
                overdue = f"it had not ended after {render.seconds(limit)}"
                break
            codes.append(code)
        if left and not schedule:
            self._usual |= {name for name in left.temporary_files() if not name.startswith("dtrain")}
        found = tuple(left.found(run.path, self._usual)) if left else ()
        return History(run, schedule, tuple(codes), time.monotonic() - began, overdue, found)

    def _supervised(
        self, run: RunDir, title: str, told: Mapping[str, str], left: Leftovers | None, deadline: float
    ) -> int | None:
        """Run one supervisor of a run to its end; None: it was ended since it took too long."""
        with _environment(told):
            if not self._cluster.supervises_locally():
                return self._followed(run, title, deadline)
            start.announce(run, run.job())
            with open(run.logs / SUPERVISOR_LOG, "ab") as log:
                process = subprocess.Popen(
                    supervisor_command(run), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    cwd="/", preexec_fn=partial(die_with_parent, os.getpid()),
                )  # fmt: skip
        try:
            while (code := process.poll()) is None and time.monotonic() < deadline:
                self._show(run, title)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
            if code is None:
                process.kill()
                process.wait()
            return code
        except KeyboardInterrupt:
            self._interrupt(process, title)
            if left:
                left.found(run.path, self._usual)
            raise Interrupted from None

    def _interrupt(self, process: subprocess.Popen[bytes], title: str) -> None:
        """Have the run stop at once; a second Ctrl-C does not wait for that."""
        self.say(f"{title}: stopping (Ctrl-C again to kill it)")
        try:
            for _ in range(2):
                process.send_signal(signal.SIGINT)
                time.sleep(0.1)
            process.wait(STOP_SECONDS)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            process.kill()
            process.wait()

    def _followed(self, run: RunDir, title: str, deadline: float) -> int | None:
        """Submit the run to the cluster, which starts its supervisor there."""
        start.submit(run)
        watcher = Watcher(run)
        try:
            while (code := watcher.poll()) is None:
                self._show(run, title)
                time.sleep(POLL_SECONDS)
                if time.monotonic() > deadline:
                    stop(run, now=True, wait=True)
                    return None
            # A supervisor that was killed leaves no end; nobody but the drill starts another one.
            return code if isinstance(event_log.read(run.events)[-1], RunEnded | Requeued) else -signal.SIGKILL
        except KeyboardInterrupt:
            self.say(f"{title}: stopping {run.id}")
            stop(run, now=True, wait=True)
            raise Interrupted from None

    def _show(self, run: RunDir, title: str) -> None:
        if sys.stdout.isatty() and not self._quiet:
            from dtrain.record import sample_ledger

            attempts = sorted(run.ledgers.glob("attempt-*-rank-00000.bin"))
            step = sample_ledger.last_step(attempts[-1]) if attempts else None
            struck = " (struck)" if injection.log_of(run).exists() else ""
            at = "starting" if step is None else f"step {step}"
            print(f"\r\x1b[K{title}: {at}{struck}", end="", flush=True)

    def _clear(self) -> None:
        if sys.stdout.isatty() and not self._quiet:
            print("\r\x1b[K", end="", flush=True)

    def _say_end(self, title: str, row: Row) -> None:
        what = "; ".join(row.broken) if row.broken else row.problem or row.end
        self.say(f"{title}: {row.verdict}: {what} ({render.seconds(row.seconds)})")


def _last(history: History) -> int | None:
    return history.codes[-1] if history.codes else None


def _folder_name(schedule: Schedule) -> str:
    names = "-".join(fault.name for fault in schedule)
    return names[:60].rstrip("-") or "undisturbed"


@contextmanager
def _environment(told: Mapping[str, str]) -> Iterator[None]:
    """Extend this process's environment, without agents that are kept from one run to the next."""
    before = dict(os.environ)
    os.environ.pop(environment.WARM, None)
    os.environ.update(told)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
