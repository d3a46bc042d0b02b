"""Curves in MLflow: one run there for the whole life of a run here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtrain.api.tracker import Ending, Entry, TrackedRun

from .installation import missing

RUN_TAG = "dtrain.run"
COUNT_TAG = "dtrain.logged"
MARK_TAG = "dtrain.mark"
MOST_METRICS = 900
MOST_TAGS = 90
"""Most tags of one request; MLflow takes 1000 metrics and 100 tags."""
LONGEST_PARAMETER = 500
STATUS = {0: "FINISHED", 4: "KILLED", 130: "KILLED"}
"""Exit code → MLflow's word."""
NOTE_TAG = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
NOT_ALLOWED = re.compile(r"[^\w\-. /:]")
"""Characters that a metric's name may not have."""


@dataclass(frozen=True)
class MlflowOptions:
    """Credentials belong into the environment (MLFLOW_TRACKING_TOKEN …)."""

    uri: str | None = None
    """Of the tracking server, or a folder; MLFLOW_TRACKING_URI, or MLflow's default beside the recipe, if not given."""
    experiment: str | None = None
    """The recipe's name if not given."""


class Mlflow:
    """MLflow: a run of an experiment, found again by its tag `dtrain.run`."""

    Options = MlflowOptions

    def __init__(self, options: MlflowOptions) -> None:
        self._options = options

    @staticmethod
    def missing_here() -> str:
        return missing("mlflow")

    def open(self, run: TrackedRun) -> int:
        """The number of entries is a tag that is written with them."""
        # A request that does not get through is tried again by whoever started this process.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # A folder, which MLflow would refuse by now, was named by whoever wrote the recipe.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._options.uri)
        name = self._options.experiment or run.name
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([number], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return int(found[0].data.tags.get(COUNT_TAG, "0"))
        self._id = self._client.create_run(number, run_name=run.id, tags=_labels(run) | {RUN_TAG: run.id}).info.run_id
        self._log_parameters(run.config)
        return 0

    def _log_parameters(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        parameters = [Param(name, value[:LONGEST_PARAMETER]) for name, value in _flat("", config)]
        for begin in range(0, len(parameters), MOST_TAGS):
            self._client.log_batch(self._id, params=parameters[begin : begin + MOST_TAGS])

    def log(self, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric, RunTag

        for group in _requests(entries):
            metrics = [
                Metric(NOT_ALLOWED.sub("_", name), value, round(entry.time * 1000), entry.step)
                for entry in group
                for name, value in entry.values.items()
            ]
            tags = [
                RunTag(f"{MARK_TAG}.{entry.number:06d}", entry.text[:LONGEST_PARAMETER])
                for entry in group
                if entry.kind
            ]
            tags.append(RunTag(COUNT_TAG, str(group[-1].number + 1)))
            self._client.log_batch(self._id, metrics=metrics, tags=tags)

    def close(self, ending: Ending | None) -> None:
        status = STATUS.get(ending.exit_code, "FAILED") if ending else "KILLED"
        self._client.update_run(self._id, status="SCHEDULED" if ending and ending.requeued else status)


def _requests(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries in groups that fit into one request each."""
    group: list[Entry] = []
    metrics = 0
    for entry in entries:
        if group and (metrics + len(entry.values) > MOST_METRICS or len(group) == MOST_TAGS):
            yield group
            group, metrics = [], 0
        group.append(entry)
        metrics += len(entry.values)
    if group:
        yield group


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings: `train.steps` → '300'."""
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else NOT_ALLOWED.sub("_", str(name)), part)
    elif prefix and value not in (None, {}, ""):
        yield NOT_ALLOWED.sub("_", prefix), str(value)


def _labels(run: TrackedRun) -> dict[str, str]:
    """The tags and the note of the run."""
    note = str(run.config.get("note") or "")
    return {str(name): str(value) for name, value in dict(run.config.get("tags") or {}).items()} | (
        {NOTE_TAG: note} if note else {}
    )
