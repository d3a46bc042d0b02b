"""What trackers wrote, read back with the readers of those who show it."""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.record.folder import RunDir

Curve = list[tuple[int, Any]]
BLOCK_BYTES = 1 << 15
HEAD_BYTES = 7


def tensorboard(run: RunDir) -> tuple[dict[str, Curve], list[tuple[int, str]]]:
    """Curves and marks, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run.path / "trackers/tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    reader.Reload()
    tags = reader.Tags()
    curves = {name: [(one.step, one.value) for one in reader.Scalars(name)] for name in tags["scalars"]}
    marks = [(one.step, one.tensor_proto.string_val[0].decode()) for one in reader.Tensors("run/marks")]
    return curves, marks


@dataclass
class WandbFile:
    """A run that W&B wrote offline."""

    id: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def wandb(run: RunDir) -> list[WandbFile]:
    """The offline files of a run in their order, by W&B's own messages."""
    import json

    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted((run.path / "trackers/wandb/wandb").glob("offline-run-*/*.wandb")):
        one = WandbFile()
        for data in _records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                one.id, one.project = record.run.run_id, record.run.project
                one.tags, one.notes = list(record.run.tags), record.run.notes
            elif kind == "history":
                items = record.history.item
                row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                one.rows.append(row | {"_step": record.history.step.num})
            elif kind == "exit":
                one.exit_code = record.exit.exit_code
        found.append(one)
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, in which W&B writes after a head of its own."""
    assert data[:4] == b":W&B"
    place, parts = HEAD_BYTES, b""
    while place + HEAD_BYTES <= len(data):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < HEAD_BYTES:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + HEAD_BYTES : place + HEAD_BYTES + length]
        place += HEAD_BYTES + length
        if kind in (1, 4):  # the whole of a record, or its end
            yield parts
            parts = b""


def mlflow(folder: Path, experiment: str) -> list[Any]:
    """The runs of an experiment in MLflow's file store, and a client to ask about them."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=str(folder))
    found = client.get_experiment_by_name(experiment)
    assert found
    return [(client, run) for run in client.search_runs([found.experiment_id])]


def prometheus(path: Path) -> dict[tuple[str, str], float]:
    """(Metric, its label `name`) → value, by prometheus_client's parser."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(path.read_text())
    return {
        (sample.name, sample.labels.get("name", "")): sample.value for family in families for sample in family.samples
    }


def csv_rows(run: RunDir) -> list[dict[str, str]]:
    """Every row of the CSV file."""
    with open(run.path / "trackers/csv/curves.csv", newline="") as file:
        return list(csv.DictReader(file))
