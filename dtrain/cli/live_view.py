"""What a person sees while a run goes on: a live view in a terminal, plain lines in a pipe. Both only read the run folder."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dtrain.cli import render
from dtrain.run.event_log import Reader
from dtrain.run.events import Event
from dtrain.run.folder import RunDir
from dtrain.run.status import RunState

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LOOK_SECONDS = 0.1
MOST_WORKERS_SHOWN = 16


class LineReader:
    """New whole lines of a log; what is there already counts as old where `skip` says so."""

    def __init__(self, path: Path, *, skip: bool) -> None:
        self._path = path
        self._offset = path.stat().st_size if skip and path.exists() else 0

    def new(self, *, rest: bool = False) -> list[str]:
        """Lines not seen yet; with `rest`, a last one without an end too."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data if rest else data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


class Feed:
    """Turns what is new in a run folder into lines of text, and keeps its state."""

    def __init__(self, run: RunDir, *, resumed: bool) -> None:
        self.run = run
        self.state = RunState()
        self._events = Reader(run.events)
        self._output = LineReader(run.rank_log(0), skip=resumed)
        if resumed:
            for event in self._events.new():
                self.state.add(event)
            self.state.exit_code = None

    def lines(self, *, last: bool = False) -> Iterator[str]:
        """Everything since the last call, for reading."""
        for text in self._output.new(rest=last):
            if not text.startswith("--- dtrain: "):
                yield f"rank 0 | {text}"
        for event in self._events.new():
            self.state.add(event)
            if text := self._line(event):
                yield text

    def _line(self, event: Event) -> str:
        text = render.line(event, self.state)
        return f"{render.clock(event)}  {text}" if text else ""


class View:
    """Shows a run from a thread of its own, while the supervisor (or nothing at all) works in this process."""

    def __init__(self, run: RunDir, *, resumed: bool = False) -> None:
        self._feed = Feed(run, resumed=resumed)
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

    def _show(self) -> None:
        if sys.stdout.isatty():
            self._show_live()
        else:
            self._show_plain()

    def _show_plain(self) -> None:
        try:
            while not self._over.wait(LOOK_SECONDS):
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

        console = Console(highlight=False, soft_wrap=True)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not self._over.wait(LOOK_SECONDS):
                self._refresh(console, live)
            self._refresh(console, live, last=True)

    def _refresh(self, console: Console, live: object, *, last: bool = False) -> None:
        from rich.live import Live

        assert isinstance(live, Live)
        for text in self._feed.lines(last=last):
            if not _is_in_panel(text):
                console.print(text, markup=False)
        live.update(picture(self.state, time.time()), refresh=True)


def _is_in_panel(text: str) -> bool:
    """Metrics are shown in place in a terminal, so that what happened stays in sight above them."""
    return "  step " in text and "samples/s" in text


def picture(state: RunState, now: float) -> RenderableType:
    """The live panel: progress, speed, numbers, each worker, restarts and why."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    total = state.total_steps
    if total:
        bar = ProgressBar(total=total, completed=min(state.step, total), width=36)
        grid.add_row("progress", bar, f"{state.step}/{total}", f"ETA {eta(state, now)}")
    facts = [
        f"{state.samples_per_second:,.0f} samples/s" if state.samples_per_second else "",
        render.numbers(state.metrics),
    ]
    held_out = f"held-out {render.numbers(state.evaluation)}" if state.evaluation else ""
    rows: list[RenderableType] = [grid] if total else []
    rows += [Text("  ".join(part for part in (*facts, held_out) if part))]
    rows += [Text(f"workers   {workers(state)}", style="dim")]
    if state.failures:
        last = state.failures[-1]
        rows.append(Text(f"restarts  {state.restarts}, last: {render.failure(last)}", style="yellow"))
    title = f"{state.run or 'dtrain'} · {state.strategy} on {state.workers} × {state.cluster} · attempt {state.attempt} · {state.outcome}"
    return Panel(
        Group(*rows), title=title, title_align="left", subtitle="Ctrl-C: save and stop", subtitle_align="right"
    )


def workers(state: RunState) -> str:
    """Each worker's step, or how many there are where they are many."""
    if not state.pids:
        return "waiting for nodes" if not state.hosts else "starting"
    ranks = sorted(state.pids, key=int)
    if len(ranks) > MOST_WORKERS_SHOWN:
        return f"{len(ranks)} {state.phase}"
    return "  ".join(f"{rank}:{state.steps.get(rank, state.phase)}" for rank in ranks)


def eta(state: RunState, now: float) -> str:
    """Time to the end at the speed of this attempt so far."""
    done = state.step - state.first_step
    if not state.total_steps or done <= 0 or not state.trained_since:
        return "-"
    return render.seconds((now - state.trained_since) / done * (state.total_steps - state.step))
