"""What SLURM's accounting says of a job: how long it waited, the most memory of a node, energy, and how it ended."""

from __future__ import annotations

import os
import re

from dtrain.api.cluster import Usage
from dtrain.common.errors import ClusterError

from .commands import call

FIELDS = ("JobID", "State", "ExitCode", "Submit", "Start", "MaxRSS", "ConsumedEnergyRaw")
PATIENCE_SECONDS = 10.0
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def usage(job: str) -> Usage | None:
    """Ask `sacct`; None if the cluster keeps no accounting or does not know the job."""
    command = ("sacct", "--duplicates", "--noheader", "--parsable2", f"--jobs={job}", f"--format={','.join(FIELDS)}")
    try:
        text = call(*command, seconds=PATIENCE_SECONDS, environment={**os.environ, "SLURM_TIME_FORMAT": "%s"})
    except ClusterError:
        return None
    return usage_in(text)


def usage_in(text: str) -> Usage | None:
    """Pure. Read lines of `sacct`: one for the job and for each of its steps, for every time that it was queued."""
    rows = [
        dict(zip(FIELDS, line.split("|"), strict=True))
        for line in text.splitlines()
        if line.count("|") == len(FIELDS) - 1
    ]
    jobs = [row for row in rows if "." not in row["JobID"]]
    if not jobs:
        return None
    waits = [
        int(row["Start"]) - int(row["Submit"]) for row in jobs if row["Start"].isdigit() and row["Submit"].isdigit()
    ]
    memory = max(map(_bytes, (row["MaxRSS"] for row in rows)), default=0)
    energy = sum(int(row["ConsumedEnergyRaw"]) for row in jobs if row["ConsumedEnergyRaw"].isdigit())
    ended = _end(jobs[-1]["State"], jobs[-1]["ExitCode"])
    return Usage(ended, float(sum(waits)) if waits else None, memory or None, float(energy) or None)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return int(float(match[1]) * UNITS[match[2]]) if match else 0


def _end(state: str, code: str) -> str:
    """Write how a job ended: `FAILED, exit code 1`, `CANCELLED by 1000, signal 15`."""
    number, _, signal = code.partition(":")
    reason = (
        f", signal {signal}" if signal not in ("", "0") else f", exit code {number}" if number not in ("", "0") else ""
    )
    return f"{state}{reason}"
