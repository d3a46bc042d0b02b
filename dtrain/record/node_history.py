"""Nodes with a past: failures that began on a node, kept beside the runs of a folder for the runs that come later.

Two different failures within `recovery.avoid_hours` have a node avoided. A failure that strikes at the same step of the same rank in
the same way again is the program's and counts once; an exception of the user's code does not count at all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from dtrain.common.files import folder_clock
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import from_dict, to_dict
from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.record.folder import RunDir

FILE = "nodes.jsonl"
COUNTED = (FailureKind.NODE_LOST, FailureKind.HANG, FailureKind.CRASH, FailureKind.DEVICE, FailureKind.KILLED)
AVOIDED_AFTER = 2
"""Different failures."""


@dataclass(frozen=True)
class NodeFailure:
    """A failure of a run that began on a node."""

    cluster: str
    node: str
    """The cluster's name of the node."""
    run: str
    attempt: int
    kind: str
    message: str
    time: float
    """Seconds since 1970."""
    expires: float
    """By the clock of the folder of runs; see `clock`."""
    rank: int | None = None
    step: int | None = None
    fingerprint: str = ""
    """Equal for failures that count as the same one; '' for one that is like no other."""

    @property
    def told(self) -> str:
        """Format the evidence in a few words."""
        which = f" of rank {self.rank}" if self.rank is not None else ""
        step = f" at step {self.step}" if self.step is not None else ""
        return f"{self.kind}{which}{step} in attempt {self.attempt} of {self.run}"


@dataclass(frozen=True)
class NodeRecord:
    """The failures and the avoidance of a node."""

    cluster: str
    node: str
    failures: tuple[NodeFailure, ...]
    """Failures that have not expired, the oldest first."""

    @property
    def avoided_until(self) -> float | None:
        """Seconds since 1970; None: it is not avoided."""
        expiries: dict[str, float] = {}
        for number, failure in enumerate(self.failures):
            expiries[failure.fingerprint or str(number)] = failure.expires
        latest = sorted(expiries.values(), reverse=True)
        return latest[AVOIDED_AFTER - 1] if len(latest) >= AVOIDED_AFTER else None


def counted(failure: Failure, attempt: int, run: RunDir, cluster: str, node: str, expires: float) -> NodeFailure | None:
    """Pure. The failure as it counts against this node until it expires; None if it does not."""
    if failure.kind not in COUNTED:
        return None
    return NodeFailure(
        cluster, node, run.id, attempt, failure.kind.value, failure.message, failure.time, expires,
        failure.rank, failure.step, failure.fingerprint,
    )  # fmt: skip


def file_in(runs: Path) -> Path:
    """Of a folder of runs."""
    return runs / FILE


def add(runs: Path, failure: NodeFailure) -> None:
    """Keep a failure; raises `OSError` if that cannot be written."""
    _append(runs, to_dict(failure))


def clock(runs: Path) -> float:
    """The time that failures expire by: that of the folder's file system, since many machines write to the file and read it."""
    with suppress(OSError):
        return folder_clock(runs)
    return time.time()


def forget(runs: Path, node: str, now: float) -> None:
    """Let the node's failures up to now count no more."""
    _append(runs, {"forget": node, "time": now})


def _append(runs: Path, value: dict[str, object]) -> None:
    """In one write, since several supervisors may do so."""
    descriptor = os.open(file_in(runs), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, json.dumps(value).encode() + b"\n")
    finally:
        os.close(descriptor)


def read(runs: Path, now: float) -> list[NodeRecord]:
    """The nodes with failures that have not expired, by name; lines that cannot be read are left out."""
    try:
        lines = file_in(runs).read_text(errors="replace").splitlines()
    except OSError:
        return []
    return records(lines, now)


def records(lines: Iterable[str], now: float) -> list[NodeRecord]:
    """Return the records of all nodes. Pure; see `read`."""
    found: dict[tuple[str, str], list[NodeFailure]] = {}
    for line in lines:
        try:
            value = json.loads(line)
            if "forget" in value:
                found = {key: failures for key, failures in found.items() if key[1] != value["forget"]}
                continue
            failure = from_dict(NodeFailure, value)
        except (ValueError, TypeError):
            continue
        found.setdefault((failure.cluster, failure.node), []).append(failure)
    fresh = {key: tuple(one for one in failures if one.expires > now) for key, failures in found.items()}
    return [NodeRecord(*key, failures) for key, failures in sorted(fresh.items()) if failures]


def avoided(known: Sequence[NodeRecord], cluster: str) -> dict[str, NodeRecord]:
    """Pure. The nodes of a cluster that runs are kept off."""
    return {one.node: one for one in known if one.cluster == cluster and one.avoided_until is not None}
