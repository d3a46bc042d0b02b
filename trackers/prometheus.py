"""The newest values as a file for the textfile collector of Prometheus's node exporter: no port is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain.api.tracker import Ending, Entry, TrackedRun

from .installation import missing


@dataclass(frozen=True)
class PrometheusOptions:
    """Where the node exporter looks."""

    folder: str
    """The exporter's --collector.textfile.directory; the file there is RUN.prom."""


class Prometheus:
    """A file of the newest values for the textfile collector of Prometheus's node exporter."""

    Options = PrometheusOptions

    def __init__(self, options: PrometheusOptions) -> None:
        self._folder = Path(options.folder)
        self._values: dict[str, float] = {}
        self._step = 0
        self._time = 0.0

    @staticmethod
    def missing_here() -> str:
        return missing("prometheus_client", "prometheus")

    def open(self, run: TrackedRun) -> int:
        """All entries come again: the newest value of each name is what counts."""
        self._run = run
        self._folder.mkdir(parents=True, exist_ok=True)
        return 0

    def log(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._values |= entry.values
            self._step, self._time = entry.step, entry.time
        self._write(running=1)

    def close(self, ending: Ending | None) -> None:
        """What is left says how the run ended; its values would be exported for ever."""
        self._values.clear()
        self._write(running=0, exit_code=ending.exit_code if ending else None)

    def _write(self, *, running: int, exit_code: int | None = None) -> None:
        from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

        registry = CollectorRegistry()
        labels = {"run": self._run.id, "recipe": self._run.name}
        facts = {
            "dtrain_step": ("Steps done", float(self._step)),
            "dtrain_running": ("Whether the run has a supervisor", float(running)),
            "dtrain_changed_seconds": ("When something was logged last, in seconds since 1970", self._time),
        }
        if exit_code is not None:
            facts["dtrain_exit_code"] = ("How the run ended", float(exit_code))
        for name, (text, value) in facts.items():
            Gauge(name, text, list(labels), registry=registry).labels(**labels).set(value)
        values = Gauge("dtrain_value", "The newest value of this name", [*labels, "name"], registry=registry)
        for name, value in self._values.items():
            values.labels(**labels, name=name).set(value)
        # Written aside and renamed.
        write_to_textfile(str(self._folder / f"{self._run.id}.prom"), registry)
