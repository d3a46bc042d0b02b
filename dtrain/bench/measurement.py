"""Measurements of a short run, from its event log and the ledger of its rank 0: speed, memory, time to the first
step, loss."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record import event_log
from dtrain.record.events import AttemptStarted, Evaluation, Event, MemoryUsed, Metrics, RunStarted, TrainingStarted
from dtrain.record.folder import RunDir
from dtrain.record.sample_ledger import Entry, LedgerFile

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Measurement:
    """The numbers of one run; None: the run did not get that far, or does not say."""

    samples: int = 0
    """Samples trained on."""
    speeds: tuple[float, ...] = ()
    """Samples a second in each report (`train.log_every`) after the warm-up."""
    data_wait: float | None = None
    """Share of the time of these reports that rank 0 waited for data, 0 to 1."""
    first_step_seconds: float | None = None
    """From the start of the supervisor to the end of the first step; a cluster's queue is not counted."""
    compile_seconds: float | None = None
    """Seconds of the sanity check and the first step beyond a later step: tracing and compiling."""
    memory_bytes: int | None = None
    """The most that all worker processes took together, resident; pages that they share count in each."""
    device_memory_bytes: int | None = None
    """The most that the devices of one worker process held."""
    loss: float | None = None
    """Loss of the last report."""
    held_out: tuple[tuple[str, float], ...] = ()
    """Metrics on held-out data at the end."""
    losses: Points = ()
    """(samples, loss) of each report."""

    @property
    def samples_per_second(self) -> float | None:
        """Median over the reports."""
        return statistics.median(self.speeds) if self.speeds else None

    @property
    def quality(self) -> float | None:
        """The loss on held-out data if there is one, otherwise that of the last report."""
        return dict(self.held_out).get("loss", self.loss)

    @property
    def spread(self) -> tuple[float, float] | None:
        """Quartiles over the reports."""
        if len(self.speeds) < 2:
            return (self.speeds[0], self.speeds[0]) if self.speeds else None
        low, _, high = statistics.quantiles(self.speeds, n=4, method="inclusive")
        return low, high


def measure(run: RunDir, warm_up: int) -> Measurement:
    """The measurement of a run; reports that began in the first `warm_up` steps do not count for its speed."""
    found = list(event_log.Reader(run.events).new())
    ledger = LedgerFile(run.ledger(1, 0))
    return of_events(found, list(ledger.read(0, len(ledger))) if len(ledger) else [], warm_up)


def of_events(events: Sequence[Event], ledger: Sequence[Entry], warm_up: int) -> Measurement:
    """Pure. The same from the events and the ledger."""
    started = next((event for event in events if isinstance(event, RunStarted)), None)
    training = next((event for event in events if isinstance(event, TrainingStarted)), None)
    reports = [event for event in events if isinstance(event, Metrics)]
    if started is None or training is None or not reports:
        return Measurement()
    batch = started.global_batch
    windows = _windows(reports, training.step, warm_up)
    evaluations = [event for event in events if isinstance(event, Evaluation)]
    memory, on_devices = _memory(events)
    first = ledger[0].time if ledger else None
    return Measurement(
        samples=reports[-1].step * batch,
        speeds=tuple(event.samples_per_second or 0.0 for event, _ in windows),
        data_wait=_data_wait(windows),
        first_step_seconds=None if first is None else max(0.0, first - started.time),
        compile_seconds=_compile_seconds(training, ledger, warm_up),
        memory_bytes=memory,
        device_memory_bytes=on_devices,
        loss=reports[-1].values.get("loss"),
        held_out=tuple(evaluations[-1].values.items()) if evaluations else (),
        losses=tuple((event.step * batch, event.values["loss"]) for event in reports if "loss" in event.values),
    )


def together(measured: Sequence[Measurement]) -> Measurement:
    """Pure. Several runs of the same job as one: all their reports, and the medians of what each has one of."""
    last = measured[-1]

    def median(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    memory, on_devices = (
        median(one.memory_bytes for one in measured),
        median(one.device_memory_bytes for one in measured),
    )
    return replace(
        last,
        speeds=tuple(speed for one in measured for speed in one.speeds),
        data_wait=median(one.data_wait for one in measured),
        first_step_seconds=median(one.first_step_seconds for one in measured),
        compile_seconds=median(one.compile_seconds for one in measured),
        memory_bytes=None if memory is None else round(memory),
        device_memory_bytes=None if on_devices is None else round(on_devices),
    )


def _windows(reports: Sequence[Metrics], first_step: int, warm_up: int) -> list[tuple[Metrics, int]]:
    """The reports after the warm-up, each with the number of its steps."""
    begins = [first_step, *(event.step for event in reports[:-1])]
    return [
        (event, event.step - begin)
        for event, begin in zip(reports, begins, strict=True)
        if begin >= warm_up and event.samples_per_second
    ]


def _data_wait(windows: Sequence[tuple[Metrics, int]]) -> float | None:
    """Weighted by the time of each report."""
    times = [(steps / (event.samples_per_second or 1.0), event.data_wait or 0.0) for event, steps in windows]
    total = sum(time for time, _ in times)
    return sum(time * share for time, share in times) / total if total else None


def _compile_seconds(training: TrainingStarted, ledger: Sequence[Entry], warm_up: int) -> float | None:
    later = [after.time - before.time for before, after in itertools.pairwise(ledger) if before.step >= warm_up]
    if not later:
        return None
    first = ledger[0].time - (training.began or training.time)
    return training.sanity_check_seconds + max(0.0, first - statistics.median(later))


def _memory(events: Sequence[Event]) -> tuple[int | None, int | None]:
    """Of all processes (those that did not say are taken to be like the others), and of the devices of one."""
    said = [event for event in events if isinstance(event, MemoryUsed)]
    attempts = [event for event in events if isinstance(event, AttemptStarted)]
    if not said or not attempts:
        return None, None
    mean = sum(event.bytes for event in said) / len(said)
    on_devices = max(event.device_bytes for event in said)
    return round(mean * max(attempts[-1].processes, len(said))), on_devices or None
