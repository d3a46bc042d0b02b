"""The claim of a run's supervisor on remote storage."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from dtrain.common.serde import from_dict, to_dict
from dtrain.storage.object_store import ObjectStore

CLAIM = "supervisor.json"


@dataclass(frozen=True)
class Claim:
    """Who supervises a run."""

    mark: str
    """Of the lease."""
    place: str
    """Host and run folder; in that very folder, the run's lock says more."""
    time: float
    """Seconds since 1970, when it was last heard of."""


def claimed(remote: ObjectStore) -> Claim | None:
    """Who supervises the run of this folder, as far as anybody has said."""
    text = remote.read(CLAIM)
    return from_dict(Claim, json.loads(text)) if text else None


def claim(remote: ObjectStore, mark: str, run: Path) -> None:
    """Be the run's supervisor, or say again that one lives."""
    remote.write(CLAIM, json.dumps(to_dict(Claim(mark, place(run), time.time()))).encode())


def place(run: Path) -> str:
    """Host and run folder of the supervisor, as a claim names them."""
    return f"{os.uname().nodename}:{run.resolve()}"
