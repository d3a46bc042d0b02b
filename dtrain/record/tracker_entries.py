"""The curves of a run: what trackers draw, as entries that follow from its event log alone.

The same log gives the same entries with the same numbers, whoever reads it and however often: a tracker that was down goes on at
the number where it stopped. Steps never fall, and a step that was trained again after a failure is not drawn twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record import events
from dtrain.record.events import Event


@dataclass(frozen=True)
class Entry:
    """Named values at a step, or a mark that says what happened to the run there, or both."""

    number: int
    """Counts the entries of the run from 0."""
    step: int
    """Steps done; never less than that of the entry before."""
    time: float
    """Seconds since 1970."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Name → value: `train/loss`, `eval/accuracy`, `speed/samples_per_second`, `node/NODE/cpu` …"""
    kind: str = ""
    """Kind of a mark: start, resume, attempt, restart, failure, node lost, resize, stop, requeue or end; '' for
    values alone."""
    text: str = ""
    """Text of the mark."""


@dataclass(frozen=True)
class Ending:
    """How a supervisor left the run."""

    exit_code: int
    reason: str
    requeued: bool = False
    """The cluster is to start it again."""


class Curves:
    """A fold over the event log: takes events, gives entries."""

    def __init__(self) -> None:
        self.ending: Ending | None = None
        """End of the newest supervisor; None while there is one."""
        self._number = 0
        self._step = 0
        self._trained = self._evaluated = self._saved = 0
        """The highest steps with metrics, an evaluation and a checkpoint."""
        self._attempt = self._failures = self._starts = 0
        self._requeued = False
        self._goodput = _Goodput()

    def add(self, event: Event) -> Iterator[Entry]:
        """The entries that follow from one more event."""
        self._goodput.add(event, self._trained)
        handler = HANDLERS.get(type(event))
        if handler is None:
            return
        for step, values, kind, text in handler(self, event):
            self._step = max(self._step, step)
            yield Entry(self._number, self._step, event.time, values, kind, text)
            self._number += 1

    def _on_run(self, event: events.RunStarted) -> Iterator[_Drawn]:
        kind = "resume" if self._starts else "start"
        self._starts += 1
        self.ending, self._requeued = None, False
        yield _mark(kind, f"{kind}: {event.strategy} on {event.workers} workers, cluster {event.cluster}")

    def _on_attempt(self, event: events.AttemptStarted) -> Iterator[_Drawn]:
        kind = "restart" if self._attempt else "attempt"
        self._attempt = event.attempt
        text = f"attempt {event.attempt} from step {event.step} on {event.workers} workers"
        yield _mark(kind, text, {"run/attempt": float(event.attempt), "run/workers": float(event.workers)})

    def _on_metrics(self, event: events.Metrics) -> Iterator[_Drawn]:
        if event.step <= self._trained or event.step < self._step:
            return
        self._trained = event.step
        speed = {"samples_per_second": event.samples_per_second, "data_wait": event.data_wait}
        values = _named("train", event.values) | _named("optimizer", event.optimizer) | _named("speed", speed)
        yield event.step, values | {"run/goodput": self._goodput.share(event.time)}, "", ""

    def _on_evaluation(self, event: events.Evaluation) -> Iterator[_Drawn]:
        if event.step > self._evaluated and event.step >= self._step:
            self._evaluated = event.step
            yield event.step, _named("eval", event.values), "", ""

    def _on_checkpoint(self, event: events.CheckpointSaved) -> Iterator[_Drawn]:
        if event.step > self._saved:
            self._saved = event.step
            values = {
                "step": event.step,
                "stall_seconds": event.stall_seconds,
                "seconds": event.seconds,
                "bytes": event.bytes,
            }
            yield 0, _named("checkpoint", values), "", ""

    def _on_usage(self, event: events.NodesUsed) -> Iterator[_Drawn]:
        values: dict[str, float] = {}
        for node, numbers in event.nodes.items():
            values |= _named(f"node/{node}", numbers)
        yield 0, values, "", ""

    def _on_failure(self, event: events.FailureOccurred) -> Iterator[_Drawn]:
        self._failures += 1
        rank = "" if event.rank is None else f"rank {event.rank}: "
        text = f"failure of attempt {event.attempt}, {event.kind}: {rank}{event.message}"
        yield _mark("failure", text, {"run/failures": float(self._failures)})

    def _on_node_lost(self, event: events.NodeLost) -> Iterator[_Drawn]:
        yield _mark("node lost", f"node {event.node} lost: {event.reason}")

    def _on_resize(self, event: events.ResizeRequested) -> Iterator[_Drawn]:
        yield _mark("resize", f"resize: {event.why}")

    def _on_stopping(self, event: events.StopRequested) -> Iterator[_Drawn]:
        yield _mark("stop", f"stop: {event.why}")

    def _on_requeued(self, event: events.Requeued) -> Iterator[_Drawn]:
        self._requeued = True
        yield _mark("requeue", f"requeued: {event.words}")

    def _on_end(self, event: events.RunEnded) -> Iterator[_Drawn]:
        self.ending = Ending(event.exit_code, event.reason, self._requeued)
        yield _mark("end", f"end with exit code {event.exit_code}: {event.reason}")


_Drawn = tuple[int, dict[str, float], str, str]
"""Step (0: that of the entry before), values, kind and text of a mark."""


def _mark(kind: str, text: str, values: dict[str, float] | None = None) -> _Drawn:
    return 0, values or {}, kind, text


def _named(group: str, values: Mapping[str, float | None]) -> dict[str, float]:
    return {f"{group}/{name}": float(value) for name, value in values.items() if value is not None}


HANDLERS: dict[type[Event], Callable[[Curves, Any], Iterator[_Drawn]]] = {
    events.RunStarted: Curves._on_run,
    events.AttemptStarted: Curves._on_attempt,
    events.Metrics: Curves._on_metrics,
    events.Evaluation: Curves._on_evaluation,
    events.CheckpointSaved: Curves._on_checkpoint,
    events.NodesUsed: Curves._on_usage,
    events.FailureOccurred: Curves._on_failure,
    events.NodeLost: Curves._on_node_lost,
    events.ResizeRequested: Curves._on_resize,
    events.StopRequested: Curves._on_stopping,
    events.Requeued: Curves._on_requeued,
    events.RunEnded: Curves._on_end,
}


class _Goodput:
    """The share of the supervised time so far that went into steps, each counted once; see `dtrain.record.goodput` for the account."""

    def __init__(self) -> None:
        self._before = 0.0
        """Seconds of earlier supervisors."""
        self._began: float | None = None
        self._newest = 0.0
        self._training = 0.0
        self._since: tuple[int, float] | None = None
        """Step and time up to which the attempt under way is counted."""
        self._stalled = 0.0

    def share(self, now: float) -> float:
        """Return the share, between 0 and 1."""
        total = self._before + (now - self._began if self._began is not None else 0.0)
        return round(min(1.0, max(0.0, self._training / total)), 4) if total > 0 else 0.0

    def add(self, event: Event, trained: int) -> None:
        """Apply one event before it is drawn; `trained` is the highest step with metrics so far."""
        if isinstance(event, events.RunStarted):
            self._close(self._newest)
            self._began = event.time
        elif isinstance(event, events.AttemptStarted | events.FailureOccurred):
            self._since = None
        elif isinstance(event, events.TrainingStarted):
            self._since, self._stalled = (event.step, event.time), 0.0
        elif isinstance(event, events.CheckpointSaved):
            self._stalled += event.stall_seconds
        elif isinstance(event, events.Metrics) and self._since is not None:
            step, time = self._since
            new = event.step - max(step, trained)
            seconds = max(0.0, event.time - time - self._stalled)
            self._training += seconds * max(0, new) / max(1, event.step - step)
            self._since, self._stalled = (event.step, event.time), 0.0
        elif isinstance(event, events.RunEnded):
            self._close(event.time)
        self._newest = event.time

    def _close(self, now: float) -> None:
        if self._began is not None:
            self._before += max(0.0, now - self._began)
        self._began = self._since = None
