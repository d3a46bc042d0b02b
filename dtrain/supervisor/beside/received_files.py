"""Logs, ledgers and profiles of nodes without the run folder, kept in the real one; and long events that came in fragments."""

from __future__ import annotations

import base64
import os
import time
from contextlib import suppress

from dtrain.api.protocol import AgentEvent, FileAppended, Fragment, Reassembler
from dtrain.record import log_retention
from dtrain.record.folder import RunDir
from dtrain.record.log_times import LogTimes


class ReceivedFiles:
    """Puts fragments together and writes what nodes without the run folder send of their files."""

    def __init__(self, run: RunDir, keep_log_bytes: int) -> None:
        self._run = run
        self._keep_log_bytes = keep_log_bytes
        """Bound of each log; 0: everything is kept."""
        self._reassembler = Reassembler()
        self._times: dict[str, LogTimes] = {}

    def take(self, node: str, item: Fragment | FileAppended) -> AgentEvent | None:
        """The event that is complete with this item and is no part of a file; None if there is none."""
        whole = self._reassembler.add(node, item) if isinstance(item, Fragment) else item
        if isinstance(whole, FileAppended):
            self._keep(whole)
            return None
        return whole

    def _keep(self, appended: FileAppended) -> None:
        """Add to the run folder what a node sent. The offset in a ledger or a profile is known, so that what is sent twice counts
        once; a rank's log may come from one node after another."""
        path = self._run.path / appended.name
        profile = ".." not in path.parts and path.is_relative_to(self._run.profiles)
        if not profile and path.parent not in (self._run.logs, self._run.ledgers):
            raise ValueError(f"not a file that a node may send: {appended.name}")
        data = base64.b64decode(appended.data)
        if path.parent == self._run.logs:
            with open(path, "ab") as log:
                with suppress(OSError):  # a full disk
                    self._times.setdefault(appended.name, LogTimes(path)).note(log.tell(), time.time())
                log.write(data)
                size = log.tell()
            if self._keep_log_bytes and size > self._keep_log_bytes:
                with suppress(OSError):  # the node says so of its own file
                    log_retention.shorten(path, self._keep_log_bytes)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as file:
            file.seek(appended.offset)
            file.write(data)
