"""Output while a run goes on: a live view in a terminal, plain lines in a pipe."""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.cli.options import Output
from dtrain.common.printable import raw
from dtrain.record import log_retention
from dtrain.record.event_log import Reader
from dtrain.record.events import Event, WorkersStarted
from dtrain.record.folder import RunDir
from dtrain.record.status import RunState
from dtrain.show import render

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

POLL_SECONDS = 0.1
STATE_SECONDS = 0.4
"""Pause between two looks at a progress bar."""


class LineReader:
    """New whole lines of a log; what is there already counts as old if `skip` says so.

    Of a line that a progress bar writes over and over (`\\r`), only the newest state is read, a few times a second."""

    def __init__(self, path: Path, *, skip: bool, offset: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._offset = path.stat().st_size if skip and path.exists() else offset
        self._clock = clock
        self._state = ""
        """Of the line under way, when it was last read."""
        self._state_at = -math.inf

    def new(self, *, rest: bool = False) -> list[str]:
        """Lines not seen yet; with `rest`, a last one without an end too."""
        found: list[str] = []
        while True:
            try:
                piece = log_retention.read(self._path, self._offset)
            except FileNotFoundError:
                return found
            data = piece.data
            whole = data[: data.rfind(b"\n") + 1] or (data if rest or not piece.last else b"")
            if not whole:
                return found + self._under_way(data)
            self._offset += piece.removed + len(whole)
            if piece.removed >= log_retention.BLOCK:
                found.append(f"[{render.size(piece.removed)} of this log were removed here: it is beyond logs.keep]")
            found += self._lines(whole)

    def _lines(self, whole: bytes) -> list[str]:
        lines = whole.decode(errors="replace").split("\n")
        found = [_newest_state(line) for line in (lines if lines[-1] else lines[:-1])]
        if self._state and found[:1] == [self._state]:
            del found[0]  # it is the end of a line whose last state is known
        self._state = ""
        return found

    def _under_way(self, data: bytes) -> list[str]:
        """Return what a progress bar shows now, if it has changed and its pause is over."""
        now = self._clock()
        if b"\r" not in data or now < self._state_at + STATE_SECONDS:
            return []
        state = _newest_state(data.decode(errors="replace"))
        if not state or state == self._state:
            return []
        self._state, self._state_at = state, now
        return [state]


def _newest_state(line: str) -> str:
    """Return what a terminal would show of a line: the last thing that was written over the others."""
    return next((part for part in reversed(line.split("\r")) if part), "")


class Feed:
    """Turns what is new in a run into lines of text, and keeps its state.

    Events come from the supervisor if it works in this process (so a full disk hides nothing), else from the event log."""

    def __init__(self, run: RunDir, *, resumed: bool, every_rank: bool = False) -> None:
        self.run = run
        self._every_rank = every_rank
        self.state = RunState()
        self._reader = Reader(run.events)
        self._heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._in_process = False
        self._outputs = {0: LineReader(run.rank_log(0), skip=resumed)}
        if every_rank:
            self._find_outputs(skip=resumed)
        if resumed:
            for event in self._reader.new():
                self.state.add(event)
            self.state.exit_code = None

    def hear(self, event: Event) -> None:
        """An event of a supervisor in this process, as it is logged."""
        self._in_process = True
        self._heard.put(event)

    def lines(self, *, last: bool = False) -> Iterator[str]:
        """Everything since the last call, for reading; what cannot be read now is left for the next one."""
        if last and self._every_rank:
            self._find_outputs(skip=False)
        for rank, output in sorted(self._outputs.items()):
            new = list[str]()
            with suppress(OSError):
                new = output.new(rest=last)
            yield from (f"rank {rank} | {text}" for text in new if not text.startswith("--- dtrain: "))
        for event in self._events():
            self.state.add(event)
            if self._every_rank and isinstance(event, WorkersStarted):
                self._find_outputs(skip=False)
            if text := self._line(event):
                yield text

    def _find_outputs(self, *, skip: bool) -> None:
        for rank, path in self.run.rank_logs().items():
            self._outputs.setdefault(rank, LineReader(path, skip=skip))

    def _events(self) -> Iterator[Event]:
        if not self._in_process and self._heard.empty():
            with suppress(OSError):
                yield from self._reader.new()
            return
        while not self._heard.empty():
            yield self._heard.get()

    def _line(self, event: Event) -> str:
        text = render.line(event, self.state)
        return f"{render.clock(event)}  {text}" if text else ""


class View:
    """Shows a run from a thread of its own: a live panel in a terminal, plain lines in a pipe."""

    def __init__(self, run: RunDir, output: Output = Output.NORMAL, *, resumed: bool = False) -> None:
        self._feed = Feed(run, resumed=resumed, every_rank=output is Output.VERBOSE)
        self._output = output
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, name="dtrain-view", daemon=True)

    def __enter__(self) -> View:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5.0)

    @property
    def state(self) -> RunState:
        """The state as far as it was shown."""
        return self._feed.state

    def hear(self, event: Event) -> None:
        self._feed.hear(event)

    def _show(self) -> None:
        if self._output is Output.QUIET:
            self._over.wait()
            for _ in self._feed.lines(last=True):
                pass
        elif sys.stdout.isatty():
            with _no_echo_of_ctrl_c():
                self._show_live()
        else:
            self._show_plain()

    def _show_plain(self) -> None:
        try:
            while not self._over.wait(POLL_SECONDS):
                self._print_new()
            self._print_new(last=True)
        except BrokenPipeError:
            return

    def _print_new(self, *, last: bool = False) -> None:
        for text in self._feed.lines(last=last):
            sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def _show_live(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=raw(sys.stdout), highlight=False, soft_wrap=True)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not self._over.wait(POLL_SECONDS):
                self._refresh(console, live)
            self._refresh(console, live, last=True)

    def _refresh(self, console: Console, live: Live, *, last: bool = False) -> None:
        for text in self._feed.lines(last=last):
            if not _is_in_panel(text):
                console.print(text, markup=False, style=_style(text))
        live.update(picture(self.state, time.time()), refresh=True)


@contextmanager
def _no_echo_of_ctrl_c() -> Iterator[None]:
    """Keep the terminal from printing `^C`, which would shift the panel that is about to be erased."""
    import termios

    try:
        before = termios.tcgetattr(sys.stdout)
    except (termios.error, OSError, ValueError):
        yield
        return
    changed = list(before)
    changed[3] &= ~termios.ECHOCTL
    termios.tcsetattr(sys.stdout, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdout, termios.TCSANOW, before)


def _is_in_panel(text: str) -> bool:
    """Metrics are shown in place in a terminal, so that what happened stays in sight above them."""
    return "  step " in text and "samples/s" in text


def _style(text: str) -> str:
    message = text.partition("  ")[2]
    return "bold red" if message.startswith("FAILURE") else "yellow" if message.startswith("WARNING") else ""


def picture(state: RunState, now: float) -> RenderableType:
    """The live panel: progress, speed, numbers, each worker, restarts and why."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    rows: list[RenderableType] = []
    if total := state.total_steps:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column()
        grid.add_column(ratio=1)
        grid.add_column()
        grid.add_column()
        bar = ProgressBar(total=total, completed=min(state.step, total))
        grid.add_row("progress", bar, f"{state.step}/{total}", f"ETA {render.eta(state, now)}")
        rows.append(grid)
    speed = f"{state.samples_per_second:,.0f} samples/s" if state.samples_per_second else ""
    held_out = f"held-out {render.numbers(state.evaluation)}" if state.evaluation else ""
    waiting = render.data_wait(state.data_wait).strip()
    rows.append(Text("  ".join(part for part in (speed, render.numbers(state.metrics), held_out, waiting) if part)))
    rows.append(Text(f"workers   {render.workers(state)}", style="dim"))
    if state.failures:
        last = render.failure(state.failures[-1])
        rows.append(Text(f"restarts  {state.restarts}, last: {last}", style="yellow"))
    workers = render.counted(state.workers, "worker")
    title = f"{state.run or 'dtrain'} · {state.strategy} · {workers} on {state.cluster} · attempt {state.attempt} · {state.outcome}"
    return Panel(
        Group(*rows), title=Text(title), title_align="left", subtitle="Ctrl-C: save and stop", subtitle_align="right"
    )
