"""The supervisor of a submitted run, started inside the cluster on a run folder."""

from __future__ import annotations

import sys
from pathlib import Path

from dtrain.errors import DtrainError
from dtrain.rundir import RunDir
from dtrain.supervisor import supervise

LOCK_SECONDS = 120.0
"""The lock of a supervisor whose machine went down is held for so long by a file server that waits for it."""


def main(path: str) -> int:
    """`python -P -m dtrain supervise RUN`."""
    try:
        return int(supervise(RunDir(Path(path)), LOCK_SECONDS))
    except DtrainError as error:
        print(f"dtrain: {error}", file=sys.stderr)
        return int(error.exit_code)
