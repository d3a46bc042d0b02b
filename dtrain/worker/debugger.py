"""Python's debugger in a worker, typed into from `dtrain debug`: at `breakpoint()`, at a requested step, or after an exception.

Leaving it (`q`, Ctrl-D, a terminal that is gone) lets the run go on; only `dtrain stop` ends it.
"""

from __future__ import annotations

import os
import pdb
import queue
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from dtrain.api.reports import DebuggerOutput, DebuggerResumed
from dtrain.job.job import Job
from dtrain.record.debug_session import Reason
from dtrain.record.events import DebuggerStopped
from dtrain.worker.control_channel import ControlChannel
from dtrain.worker.users_code import UsersCode

LEAST_HOLD_SECONDS = 300.0
"""A rank at `breakpoint()` waits at least so long for somebody."""


class Debugger:
    """Stops this worker for a person; without a request it costs a comparison a step."""

    def __init__(self, channel: ControlChannel, job: Job) -> None:
        self._channel = channel
        self._worker = os.getpid()
        self._hold_seconds = job.recovery.hold_seconds
        self._users = UsersCode(job)
        self._pdb: _Pdb | None = None
        self._ignored = False
        """Nobody came to the last `breakpoint()`."""

    def install(self) -> None:
        """Have `breakpoint()` stop here from now on."""
        sys.breakpointhook = self._breakpoint

    def before(self, step: int, backend: Any) -> None:
        """Called before each step of a loop: stop at the user's first line of it if that was asked for."""
        if self._pdb and self._pdb.seeking:
            self._pdb.stop_at(
                sys._getframe(1), f"No line of your Python code ran in step {step - 1}; this is dtrain's."
            )
        wanted = self._channel.debug
        if wanted is None or wanted.step is None or step < wanted.step:
            return
        self._channel.debug = None
        backend.suspend_timeouts()  # the others wait for this rank, or this rank is the one they wait for
        if wanted.rank == self._channel.rank:
            self._new(None, "step", f"step {step}").seek(sys._getframe(1))

    def on_exception(self, error: BaseException) -> None:
        """Hold this rank after an exception that is about to end it, if the recipe or a person wants that."""
        wanted = self._channel.debug
        asked = wanted is not None and wanted.on_exception and wanted.rank in (None, self._channel.rank)
        if os.getpid() != self._worker or not (asked or self._hold_seconds) or isinstance(error, SystemExit):
            return
        self._channel.listen()
        trace = self._from_users(error.__traceback__)
        if trace is None:
            return
        said = traceback.format_exception_only(error)[-1].strip()
        traceback.print_exception(error)
        debugger = self._new(None if asked else self._hold_seconds, "exception", said)
        debugger.post_mortem(said, trace)

    def _breakpoint(self, *arguments: Any, **named: Any) -> Any:
        """`sys.breakpointhook`; PYTHONBREAKPOINT counts as ever."""
        if os.environ.get("PYTHONBREAKPOINT"):
            return sys.__breakpointhook__(*arguments, **named)
        frame = sys._getframe(1)
        where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"  # noqa: PTH119
        if os.getpid() != self._worker:
            print(
                f"dtrain: breakpoint() at {where} is ignored in process {os.getpid()}: dtrain debug reaches rank "
                f"{self._channel.rank}'s own process alone (data.workers: 0 has samples fetched there)",
                file=sys.stderr,
            )
        elif self._pdb and self._pdb.active:
            self._pdb.set_trace(frame)
        elif not self._ignored:
            self._channel.listen()
            self._new(max(self._hold_seconds, LEAST_HOLD_SECONDS), "breakpoint", where).set_trace(frame)
        return None

    def _new(self, seconds: float | None, reason: Reason, where: str) -> _Pdb:
        self._pdb = _Pdb(
            self._channel.rank, _Terminal(self._channel, seconds, reason, where), self._users, self._left
        )  # fmt: skip
        return self._pdb

    def _left(self, *, nobody_came: bool) -> None:
        if nobody_came:
            self._ignored = True
            print("dtrain: nobody came: breakpoint() is ignored in this rank from now on", file=sys.stderr)

    def _from_users(self, trace: TracebackType | None) -> TracebackType | None:
        """A traceback from the user's first frame on, or all of it if none is theirs."""
        inner = trace
        while inner is not None and inner.tb_frame.f_code.co_filename not in self._users:
            inner = inner.tb_next
        return inner or trace


class _Terminal:
    """The debugger's input and output: files as `pdb.Pdb` wants them, over the control channel."""

    encoding = "utf-8"

    def __init__(self, channel: ControlChannel, seconds: float | None, reason: Reason, where: str) -> None:
        self._channel = channel
        self._text = ""
        self._hold = seconds
        self._reason, self._where = reason, where
        self.stopped = False
        """The debugger waits for a line, or is about to."""
        self.nobody_came = False
        while not channel.typed.empty():  # typed for one that is over
            channel.typed.get()

    def stop(self) -> None:
        """Stop the rank here."""
        if not self.stopped:
            self.stopped = True
            self._channel.report(
                DebuggerStopped(rank=self._channel.rank, reason=self._reason, where=self._where, seconds=self._hold)
            )

    def go_on(self, *, ended: bool) -> None:
        """The rank goes on; the debugger comes back to it, or not."""
        self._say("")
        if self.stopped or ended:
            self.stopped = False
            self._channel.report(DebuggerResumed(ended))

    def write(self, text: str) -> int:
        """Kept until a line is wanted, or the rank goes on."""
        self._text += text
        return len(text)

    def flush(self) -> None:
        pass

    def readline(self) -> str:
        """The next line that is typed; '' if nobody types any more, or nobody comes."""
        self.stop()
        head, _, prompt = self._text.rpartition("\n")
        self._text = f"{head}\n" if head else ""
        self._say(prompt or " ")
        try:
            text = self._channel.typed.get(timeout=self._hold)
        except queue.Empty:
            self.nobody_came = True
            return ""
        self._hold = None
        return "" if text is None else f"{text}\n"

    def _say(self, prompt: str) -> None:
        text, self._text = self._text, ""
        if text or prompt:
            self._channel.report(DebuggerOutput(text, prompt))


class _Pdb(pdb.Pdb):
    """`pdb.Pdb` that never ends the program."""

    def __init__(self, rank: int, terminal: _Terminal, users: UsersCode, left: Callable[..., None]) -> None:
        super().__init__(stdin=terminal, stdout=terminal, nosigint=True)  # type: ignore[arg-type]
        self.prompt = f"(rank {rank}) "
        self._terminal = terminal
        self._users = users
        self._left = left
        self.seeking = False
        """Whether the debugger runs on to the first line of the user's."""
        self.active = True

    def seek(self, frame: FrameType) -> None:
        """Stop at the next line that is the user's."""
        self.seeking = True
        self.set_trace(frame)

    def stop_at(self, frame: FrameType, why: str) -> None:
        """Stop at the next line of this frame, whoever's it is."""
        self.seeking = False
        self.message(why)
        self.set_trace(frame)

    def post_mortem(self, said: str, trace: TracebackType) -> None:
        """Look at a traceback, from its innermost frame that is the user's."""
        self.message(said)
        self.reset()
        self.interaction(None, trace)
        self._end()

    def stop_here(self, frame: FrameType) -> bool:
        """While it seeks, only in the user's files."""
        if self.seeking and frame.f_code.co_filename not in self._users:
            return False
        return super().stop_here(frame)

    def user_call(self, frame: FrameType, argument_list: Any) -> None:
        """The first line of a function says more than its call."""
        if not self.seeking:
            super().user_call(frame, argument_list)

    def user_line(self, frame: FrameType) -> None:
        """A line that is stopped at ends the search."""
        self.seeking = False
        super().user_line(frame)

    def user_return(self, frame: FrameType, return_value: Any) -> None:
        """No end of a function ends the search."""
        if not self.seeking:
            super().user_return(frame, return_value)

    def user_exception(self, frame: FrameType, exc_info: Any) -> None:
        """Nor does an exception that the user's code may catch."""
        if not self.seeking:
            super().user_exception(frame, exc_info)

    def interaction(self, *arguments: Any, **named: Any) -> None:
        """Stopped: talk until a command lets the program go on."""
        self._terminal.stop()
        super().interaction(*arguments, **named)
        if self.active:
            self._terminal.go_on(ended=False)

    def do_quit(self, arg: str) -> bool:
        """q(uit) | exit
        Leave the debugger; the run goes on. (dtrain stop ends the run.)
        """
        with suppress(Exception):
            self.clear_all_breaks()
        self._end()
        return True

    do_q = do_exit = do_quit

    def do_EOF(self, arg: str) -> bool:  # noqa: N802
        """Handle EOF as quit."""
        return self.do_quit(arg)

    def do_continue(self, arg: str) -> bool:
        """c(ont(inue))
        Go on, to the next break point if there is one.
        """
        if not self.breaks:
            self._end()
        else:
            self.set_continue()
        return True

    do_c = do_cont = do_continue

    def _end(self) -> None:
        """Nothing is traced any more."""
        if self.active:
            self.active = False
            self.set_continue()
            self._terminal.go_on(ended=True)
            self._left(nobody_came=self._terminal.nobody_came)
