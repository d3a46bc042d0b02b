"""Logs and ledgers of nodes without the run folder, kept in the real one."""

from __future__ import annotations

import base64
import os

from dtrain.api.protocol import FileAppended
from dtrain.run.folder import RunDir


def keep(run: RunDir, grew: FileAppended) -> None:
    """Add to the run folder what a node sent. A ledger's offset is known, so that what is sent twice counts once; a rank's log
    may come from one node after another."""
    path = run.path / grew.name
    if path.parent not in (run.logs, run.ledgers):
        raise ValueError(f"not a file that a node may send: {grew.name}")
    data = base64.b64decode(grew.data)
    if path.parent == run.logs:
        with open(path, "ab") as log:
            log.write(data)
        return
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as ledger:
        ledger.seek(grew.offset)
        ledger.write(data)
