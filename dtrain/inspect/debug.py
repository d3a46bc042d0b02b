"""`dtrain debug`: a terminal for Python's debugger in one rank of a running run."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dtrain.common.errors import ClusterError, Exit, UsageError
from dtrain.control.ask import ask, copy_of, require_running
from dtrain.control.state import state_of
from dtrain.record import debug_session
from dtrain.record.debug_session import DebugLine, DebugOutput, DebugRequest
from dtrain.record.folder import RunDir
from dtrain.record.inspection import InspectionRequest

POLL_SECONDS = 0.05
PATIENCE_SECONDS = 20.0
"""Longest wait for the first answer of the supervisor."""
TOUCH_SECONDS = 1.0


def debug(run: RunDir, wanted: DebugRequest) -> Exit:
    """Talk with the debugger until somebody leaves it; raises `UsageError` if there is nothing to debug."""
    state = require_running(run, "A run that ended has no process to look into; dtrain logs shows what it said.")
    if copy_of(run):
        raise UsageError(
            f"{run.id} is reached by its remote storage alone, which is no way to type to a debugger",
            "Run dtrain debug on a machine that sees the run folder: where the run was started, or the cluster's head node.",
        )
    waiting = wanted.rank in state.debugged if wanted.rank is not None else bool(state.debugged)
    if state.kind == "script" and not wanted.on_exception and not waiting:
        raise UsageError(
            f"{run.id} runs a script, which has a loop of its own",
            "Call breakpoint() in it, or use --on-exception: then dtrain debug connects to the rank that stops.",
        )
    request = secrets.token_hex(8)
    folder = run.debug_session(request)
    debug_session.open_session(folder)
    try:
        ask(run, None, InspectionRequest(request, stacks=False, debug=wanted))
        with _touched(folder / debug_session.INPUT):
            return _Terminal(run, folder).talk()
    finally:
        _remove(folder)


@contextmanager
def _touched(path: Path) -> Iterator[None]:
    """Show the supervisor that somebody is there, even while nothing is typed."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(TOUCH_SECONDS):
            with suppress(OSError):
                os.utime(path)

    threading.Thread(target=touch, name="dtrain-terminal", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _Terminal:
    """Shows what the debugger says and sends it what is typed."""

    def __init__(self, run: RunDir, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._box = debug_session.Mailbox(folder / debug_session.OUTPUT)
        self._heard = False
        with suppress(ImportError):  # line editing and a history
            import readline  # noqa: F401

    def talk(self) -> Exit:
        """Until the session ends; Ctrl-C while the rank runs leaves it."""
        try:
            for output in self._outputs():
                self._show(output)
                if output.prompt:
                    self._send(_typed(output.prompt))
        except KeyboardInterrupt:
            self._send(None)
            print("\nleft; the run goes on", file=sys.stderr)
            return Exit.INTERRUPTED
        return Exit.DONE

    def _outputs(self) -> Iterator[DebugOutput]:
        """Raises `UsageError` if the session cannot begin, `ClusterError` if the supervisor does not answer."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            for output in debug_session.outputs(self._box):
                if output.ended and not self._heard:
                    raise UsageError(f"{self._run.id}: {output.text}", f"How it is doing: dtrain status {self._run.id}")
                self._heard = True
                yield output
                if output.ended:
                    return
            if not self._heard and time.monotonic() > deadline:
                self._send(None)
                raise ClusterError(
                    f"the supervisor of {self._run.id} does not answer",
                    f"How it is doing: dtrain status {self._run.id}",
                )
            if self._heard and not self._run.supervised():
                yield DebugOutput(f"the run has ended: {state_of(self._run).outcome}", notice=True)
                return
            time.sleep(POLL_SECONDS)

    def _show(self, output: DebugOutput) -> None:
        if output.notice and output.text:
            print(f"dtrain: {output.text}", file=sys.stderr, flush=True)
        elif output.text:
            sys.stdout.write(output.text)
            sys.stdout.flush()

    def _send(self, text: str | None) -> None:
        debug_session.append(self._folder / debug_session.INPUT, DebugLine(text))


def _typed(prompt: str) -> str | None:
    """The next line; None at the end of the input. Ctrl-C forgets the line, as in pdb."""
    while True:
        try:
            line = input(prompt)
            if not sys.stdin.isatty():
                print(line)  # so that what is kept of the output can be read
            return line
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\nCtrl-D or q leaves the debugger, and the run goes on.")


def _remove(folder: Path) -> None:
    """The supervisor may still write its last word: its thread ends when it finds nothing."""
    for name in (debug_session.INPUT, debug_session.OUTPUT):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
